"""``/v1/videos``: clips, as :mod:`serving.api.resource` has them."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response

from serving.api.admission import clip_order, wanted
from serving.api.auth import GenerateDep, ReadDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.idempotency import KEY_DOCS
from serving.api.resource import AccessDep, PageDep, Resource
from serving.api.schemas import Deleted, Listing, Video, VideoCreate, video_of
from serving.api.services import Services, ServicesDep
from serving.api.submission import submission
from serving.jobs import Job, Kind

Variant = Literal["video", "thumbnail", "spritesheet", "preview"]


async def _solo_ms(services: Services, job: Job) -> int:
    if model := services.catalog.models.get(job.pool):
        return (await services.costs.of(model)).estimate(job.clip).total_ms
    return job.est_device_ms


VIDEOS = Resource(Kind.VIDEO, "video", "/v1/videos", video_of, _solo_ms)
router = APIRouter(prefix=VIDEOS.path, tags=["videos"])


@router.post(
    "", response_model=Video, openapi_extra={**body_docs(VideoCreate), "parameters": [KEY_DOCS]}
)
async def create(request: Request, caller: GenerateDep, services: ServicesDep) -> Response:
    """Submit a clip. It is durable once this answers.

    Under an `Idempotency-Key` the same request may be sent again for a day: it makes no second
    clip and has the first one's answer.
    """
    with submission(services.tracer, request) as span:
        fields = validate(VideoCreate, await read_fields(request))
        order = await clip_order(services, wanted(services, fields))
        return await VIDEOS.submit(request, caller, services, span, fields, order)


@router.get("")
async def index(
    request: Request, caller: ReadDep, services: ServicesDep, page: PageDep
) -> Listing[Video]:
    """The caller's clips, a page at a time; ``last_id`` is the next page's ``after``."""
    return await VIDEOS.list(request, caller, services, page)


@router.get("/{video_id}")
async def retrieve(
    video_id: str, request: Request, response: Response, caller: ReadDep, services: ServicesDep
) -> Video:
    """A clip's state. One that failed or was cancelled answers 200 and says so."""
    return await VIDEOS.retrieve(video_id, request, response, caller, services)


@router.post("/{video_id}/cancel")
async def cancel(
    video_id: str, request: Request, caller: GenerateDep, services: ServicesDep
) -> Video:
    """Stop a clip: a queued one at once, a running one at its next step. Safe to repeat."""
    return await VIDEOS.cancel(video_id, request, caller, services)


@router.delete("/{video_id}")
async def delete(video_id: str, caller: GenerateDep, services: ServicesDep) -> Deleted:
    """Remove a clip and its files. One that is still active is cancelled."""
    return await VIDEOS.delete(video_id, caller, services)


@router.head("/{video_id}/content", response_model=None, include_in_schema=False)
@router.get("/{video_id}/content", response_model=None)
async def content(
    video_id: str,
    request: Request,
    services: ServicesDep,
    access: AccessDep,
    variant: Variant = "video",
) -> Response:
    """The MP4, a JPEG thumbnail or a JPEG spritesheet, whole or by ``Range``; ``preview``, while
    the video is made, is a small JPEG of what it will show as far as one can tell.

    With a key, or with the ``expires`` and ``signature`` of one of the video's URLs.
    """
    return await VIDEOS.content(video_id, variant, request, services, access)
