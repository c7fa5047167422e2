"""``/v1/videos``: submit, look, list, cancel, delete."""

from __future__ import annotations

import logging
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import MutableHeaders

from serving.api.admission import admit, wanted
from serving.api.auth import Caller, GenerateDep, ReadDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.idempotency import KEY_DOCS, REPLAYED_HEADER, wish_of
from serving.api.quota import rate_headers
from serving.api.schemas import Video, VideoCreate, VideoDeleted, VideoList, video_of
from serving.api.services import Services, ServicesDep
from serving.api.submission import decided, submission
from serving.jobs import Admission, Job, Place, State, new_video_id
from serving.media import StoreError
from serving.plan.classes import DEFAULT_POLICIES
from serving.plan.errors import InvalidRequest, NotFound, ServiceUnavailable
from serving.plan.estimate import poll_after_ms
from serving.tracing import Span

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/videos", tags=["videos"])


@router.post(
    "", response_model=Video, openapi_extra={**body_docs(VideoCreate), "parameters": [KEY_DOCS]}
)
async def create(request: Request, caller: GenerateDep, services: ServicesDep) -> Response:
    """Submit a clip. It is durable once this answers.

    Under an `Idempotency-Key` the same request may be sent again for a day: it makes no second
    clip and has the first one's answer.
    """
    with submission(services.tracer, request) as span:
        return await _create(request, caller, services, span)


async def _create(request: Request, caller: Caller, services: Services, span: Span) -> Response:
    fields = validate(VideoCreate, await read_fields(request))
    wish = wish_of(request, fields, fields.service_tier, fields.max_milli, services.quota)
    clip, parent = wanted(services, fields), span.traceparent
    admission = await admit(services, caller, new_video_id(), clip, wish, traceparent=parent)
    decided(span, admission)
    headers = MutableHeaders(rate_headers(admission.allowance, round(time.time() * 1000)))
    if admission.replayed:
        headers[REPLAYED_HEADER] = "true"
    body = admission.response
    if body is None:
        body = await _answer(services, admission, request, headers)
        if wish.idempotency_key and not admission.replayed:
            await _remember(services, caller.user, wish.idempotency_key, body)
    return Response(body, media_type="application/json", headers=headers)


async def _answer(
    services: Services, admission: Admission, request: Request, headers: MutableHeaders
) -> str:
    """The job as it is, as JSON."""
    job = admission.job
    if job is None:
        raise NotFound("The video that this request made was deleted.", code="video_not_found")
    try:
        video = await _present(services, job, request, headers)
    except ServiceUnavailable:
        # It is accepted: an error now would only make the client submit it again.
        remaining_ms = await _remaining_ms(services, job, None)
        video = video_of(job, queue_position=None, remaining_ms=remaining_ms)
    return video.model_dump_json(by_alias=True)


async def _remember(services: Services, user: str, idempotency_key: str, body: str) -> None:
    try:
        await services.queue.remember(user, idempotency_key, body)
    except ServiceUnavailable as error:
        # The key stands for its job all the same: a replay will show that as it is by then.
        log.warning("an answer is not kept for replays: %s", error)


@router.get("")
async def index(
    request: Request,
    caller: ReadDep,
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
        caller.user,
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
    video_id: str, request: Request, response: Response, caller: ReadDep, services: ServicesDep
) -> Video:
    """A clip's state. One that failed or was cancelled answers 200 and says so."""
    job = await services.queue.get(video_id, user=caller.user)
    return await _present(services, job, request, response.headers)


@router.post("/{video_id}/cancel")
async def cancel(
    video_id: str, request: Request, caller: GenerateDep, services: ServicesDep
) -> Video:
    """Stop a clip: a queued one at once, a running one at its next step. Safe to repeat."""
    job = await services.queue.cancel(video_id, user=caller.user)
    if job.state is not State.CANCELLED:
        raise InvalidRequest(
            f"The video has already {job.state}, so there is nothing to cancel.",
            code="video_already_ended",
        )
    return await _present(services, job, request)


@router.delete("/{video_id}")
async def delete(video_id: str, caller: GenerateDep, services: ServicesDep) -> VideoDeleted:
    """Remove a clip and its files. One that is still active is cancelled."""
    await services.queue.delete(video_id, user=caller.user)
    try:
        await services.store.delete_prefix(video_id)
    except StoreError as error:
        # Not lost: the record's end made the files garbage, which is collected later.
        log.warning("files of %s are not deleted yet: %s", video_id, error)
    return VideoDeleted(id=video_id)


async def _present(
    services: Services,
    job: Job,
    request: Request,
    headers: MutableHeaders | None = None,
) -> Video:
    if job.terminal:
        variants = job.result["artifacts"] if job.result else ()
        urls = {each: await _content_url(services, job, each, request) for each in variants}
        return video_of(job, queue_position=None, remaining_ms=None, content_urls=urls or None)
    place = await _place(services, job) if job.state is State.QUEUED else None
    remaining_ms = await _remaining_ms(services, job, place)
    if headers is not None:
        headers["openai-poll-after-ms"] = str(poll_after_ms(remaining_ms))
    return video_of(
        job,
        queue_position=place.ahead if place else None,
        remaining_ms=remaining_ms,
        preview_url=await _preview_url(services, job, request),
    )


async def _place(services: Services, job: Job) -> Place:
    model = services.catalog.models.get(job.pool)
    classes = model.classes if model else DEFAULT_POLICIES
    return await services.queue.place(job, classes)


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
    saved_ms = job.est_device_ms - job.left_device_ms
    return place.wait_ms + max(1, own_ms - saved_ms)
