"""The bytes of what was made, whole or by range, and a glimpse of what is being made."""

from __future__ import annotations

from contextlib import suppress

from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from serving.api.ranges import NotSatisfiable, parse_range
from serving.api.services import Services
from serving.jobs import Job, State
from serving.media import ArtifactMissing
from serving.plan.errors import InvalidRequest


async def deliver(job: Job, variant: str, request: Request, services: Services) -> Response:
    """A file of a completed job; :class:`InvalidRequest` before that, and if there is none."""
    if job.state is not State.COMPLETED:
        raise InvalidRequest(
            f"The {job.kind.noun} is {job.state}; there is content only once it is completed.",
            code=f"{job.kind}_has_no_content" if job.terminal else f"{job.kind}_not_ready",
        )
    artifact = job.result["artifacts"][variant]
    media_type, key = artifact["content_type"], artifact["key"]
    stem = job.id if variant == job.kind else f"{job.id}-{variant}"
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


async def deliver_preview(job: Job, request: Request, services: Services) -> Response:
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
