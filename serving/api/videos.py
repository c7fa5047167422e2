"""``/v1/videos``: submit, look, list, cancel, delete."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from serving.api.auth import UserDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.schemas import Video, VideoCreate, VideoDeleted, VideoList, video_of
from serving.api.services import Services, ServicesDep
from serving.jobs import Job, Place, State, new_video_id
from serving.media import StoreError
from serving.plan.catalog import Model
from serving.plan.clip import SEED_MAX, ClipSpec
from serving.plan.errors import InvalidRequest, ServiceUnavailable
from serving.plan.estimate import poll_after_ms

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/videos", tags=["videos"])


@router.post("", openapi_extra=body_docs(VideoCreate))
async def create(
    request: Request, response: Response, user: UserDep, services: ServicesDep
) -> Video:
    """Submit a clip. It is durable once this answers."""
    wanted = validate(VideoCreate, await read_fields(request))
    default = next(iter(services.catalog.models))
    alias = wanted.model or default
    model = services.catalog.resolve(alias)
    _check_text_is_enough(model)
    seed = wanted.seed if wanted.seed is not None else secrets.randbelow(SEED_MAX)
    spec = ClipSpec.resolve(model, **wanted.model_dump(exclude={"model", "seed"}), seed=seed)
    costs = await services.costs.of(model)
    job = await services.queue.submit(
        new_video_id(),
        user=user,
        alias=alias,
        spec=spec,
        est_device_ms=costs.estimate(spec).device_ms,
    )
    try:
        return await _present(services, job, request, response)
    except ServiceUnavailable:
        # It is accepted: an error now would only make the client submit it again.
        remaining_ms = await _remaining_ms(services, job, None)
        return video_of(job, queue_position=None, remaining_ms=remaining_ms)


@router.get("")
async def index(
    request: Request,
    user: UserDep,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """The caller's clips, a page at a time; ``last_id`` is the next page's ``after``."""
    if limit > services.settings.list_limit_max:
        raise InvalidRequest(
            f"'limit' must be from 1 to {services.settings.list_limit_max}.", param="limit"
        )
    page = await services.queue.list(
        user,
        limit=limit,
        after=after,
        newest_first=order == "desc",
    )
    videos = [await _present(services, job, request) for job in page.jobs]
    return VideoList(
        data=videos,
        first_id=videos[0].id if videos else None,
        last_id=videos[-1].id if videos else None,
        has_more=page.has_more,
    )


@router.get("/{video_id}")
async def retrieve(
    video_id: str, request: Request, response: Response, user: UserDep, services: ServicesDep
) -> Video:
    """A clip's state. One that failed or was cancelled answers 200 and says so."""
    job = await services.queue.get(video_id, user=user)
    return await _present(services, job, request, response)


@router.post("/{video_id}/cancel")
async def cancel(video_id: str, request: Request, user: UserDep, services: ServicesDep) -> Video:
    """Stop a clip: a queued one at once, a running one at its next step. Safe to repeat."""
    job = await services.queue.cancel(video_id, user=user)
    if job.state is not State.CANCELLED:
        raise InvalidRequest(
            f"The video has already {job.state}, so there is nothing to cancel.",
            code="video_already_ended",
        )
    return await _present(services, job, request)


@router.delete("/{video_id}")
async def delete(video_id: str, user: UserDep, services: ServicesDep) -> VideoDeleted:
    """Remove a clip and its files. One that is still active is cancelled."""
    await services.queue.delete(video_id, user=user)
    try:
        await services.store.delete_prefix(video_id)
    except StoreError as error:
        # Not lost: the record's end made the files garbage, which is collected later.
        log.warning("files of %s are not deleted yet: %s", video_id, error)
    return VideoDeleted(id=video_id)


def _check_text_is_enough(model: Model) -> None:
    """:class:`InvalidRequest` for a model that must be given pictures: requests carry none yet."""
    for name, need in model.video.inputs.items():
        if need == "required":
            raise InvalidRequest(
                f"The model '{model.id}' starts from a {name.replace('_', ' ')}, which a request "
                "cannot carry yet. Ask for a text-to-video model.",
                code="unsupported_model",
                param="model",
            )


async def _present(
    services: Services, job: Job, request: Request, response: Response | None = None
) -> Video:
    if job.terminal:
        variants = job.result["artifacts"] if job.result else ()
        urls = {each: await _content_url(services, job, each, request) for each in variants}
        return video_of(job, queue_position=None, remaining_ms=None, content_urls=urls or None)
    place = await services.queue.place(job) if job.state is State.QUEUED else None
    remaining_ms = await _remaining_ms(services, job, place)
    if response is not None:
        response.headers["openai-poll-after-ms"] = str(poll_after_ms(remaining_ms))
    return video_of(
        job,
        queue_position=place.ahead if place else None,
        remaining_ms=remaining_ms,
        preview_url=await _preview_url(services, job, request),
    )


async def _preview_url(services: Services, job: Job, request: Request) -> str | None:
    """With the step in it, so that a page that shows it notices that there is a newer one."""
    if not job.preview:
        return None
    return f"{await _content_url(services, job, 'preview', request)}&step={job.preview_step}"


async def _content_url(services: Services, job: Job, variant: str, request: Request) -> str:
    """For ``<video src>``, which sends no header: whoever holds such a URL has the file."""
    base = (services.settings.public_url or str(request.base_url)).rstrip("/")
    path = request.app.url_path_for("content", video_id=job.id)
    return f"{base}{path}?{await services.signer.sign(job.id, variant, time.time())}"


async def _remaining_ms(services: Services, job: Job, place: Place | None) -> int:
    """What the replica last said; for a queued job, what runs and waits before it, and itself."""
    if place is None and job.remaining_ms:
        return job.remaining_ms
    own_ms = job.est_device_ms
    if model := services.catalog.models.get(job.pool):
        own_ms = (await services.costs.of(model)).estimate(job.spec).total_ms
    if place is None:
        return own_ms
    lanes = max(1, len(place.running_ms))
    saved_ms = job.est_device_ms - job.left_device_ms
    return (sum(place.running_ms) + place.ahead_ms) // lanes + max(1, own_ms - saved_ms)
