"""``/v1/videos/{id}/content``: the bytes of a finished clip, a glimpse of a running one."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from serving.api.auth import Credentials, EndUsers, Scope, current_caller, permit
from serving.api.ranges import NotSatisfiable, parse_range
from serving.api.services import Services, ServicesDep
from serving.jobs import Job, State
from serving.media import ArtifactMissing
from serving.plan.errors import InvalidRequest, NotFound

router = APIRouter(prefix="/v1/videos", tags=["videos"])

Variant = Literal["video", "thumbnail", "spritesheet", "preview"]


@router.head("/{video_id}/content", response_model=None, include_in_schema=False)
@router.get("/{video_id}/content", response_model=None)
async def content(
    video_id: str,
    request: Request,
    credentials: Credentials,
    services: ServicesDep,
    variant: Variant = "video",
    expires: int | None = None,
    signature: str | None = None,
    end_users: EndUsers = None,
) -> Response:
    """The MP4, a JPEG thumbnail or a JPEG spritesheet, whole or by ``Range``; ``preview``, while
    the video is made, is a small JPEG of what it will show as far as one can tell.

    With a key, or with the ``expires`` and ``signature`` of one of the video's URLs.
    """
    job: Job | None
    if signature is not None:
        await services.signer.check(video_id, variant, expires, signature, time.time())
        job = await services.queue.find(video_id)
        if job is None:
            raise NotFound("The video was deleted.", code="video_not_found")
    else:
        caller = await current_caller(credentials, services, end_users)
        permit(caller, Scope.READ)
        job = await services.queue.get(video_id, user=caller.user)
    if variant == "preview":
        return await _preview(job, request, services)
    if job.state is not State.COMPLETED:
        raise InvalidRequest(
            f"The video is {job.state}; there is content only once it is completed.",
            code="video_not_ready" if not job.terminal else "video_has_no_content",
        )
    artifact = job.result["artifacts"][variant]
    media_type, key = artifact["content_type"], artifact["key"]
    stem = job.id if variant == "video" else f"{job.id}-{variant}"
    filename = f"{stem}.{key.rpartition('.')[2]}"
    info = await services.store.head(key)
    url = await services.store.presign_get(key, services.settings.presign_s)
    # The URL is signed for GET alone, so a HEAD is answered here.
    if url is not None and request.method == "GET":
        return RedirectResponse(url, status_code=302)

    etag = f'"{info.etag.strip(chr(34))}"'
    headers = {
        "accept-ranges": "bytes",
        "etag": etag,
        "cache-control": "private, max-age=3600",
        "content-disposition": f'inline; filename="{filename}"',
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    # A range made against an older version of the file must not be joined with this one.
    stale = request.headers.get("if-range", etag) != etag
    try:
        span = None if stale else parse_range(request.headers.get("range"), info.size_bytes)
    except NotSatisfiable:
        return Response(status_code=416, headers={"content-range": f"bytes */{info.size_bytes}"})
    start, end = span or (0, info.size_bytes)
    headers["content-length"] = str(end - start)
    if span:
        headers["content-range"] = f"bytes {start}-{end - 1}/{info.size_bytes}"
    status = 206 if span else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(
        services.store.read(key, start, end),
        status_code=status,
        headers=headers,
        media_type=media_type,
    )


async def _preview(job: Job, request: Request, services: Services) -> Response:
    """The newest one, which the next replaces: read whole, and for nobody to keep."""
    if job.terminal:
        instead = "; see its thumbnail" if job.state is State.COMPLETED else ""
        raise InvalidRequest(
            f"The video is {job.state} and has no preview any more{instead}.",
            code="video_has_no_content",
        )
    data = b""
    if job.preview:
        with suppress(ArtifactMissing):  # of an attempt that was given up
            data = b"".join([part async for part in services.store.read(job.preview)])
    if not data:
        raise InvalidRequest(
            "There is no preview yet. Once there is one, the video has a preview_url.",
            code="video_not_ready",
        )
    headers = {
        "cache-control": "no-store",
        "content-disposition": f'inline; filename="{job.id}-preview.jpg"',
        "content-length": str(len(data)),
    }
    body = b"" if request.method == "HEAD" else data
    return Response(body, headers=headers, media_type="image/jpeg")
