"""What jobs make, over HTTP: submit, look, list, cancel, delete and download, written once.

A :class:`Resource` is one kind of it. Its routes, with its own fields, are in a module of their
own: :mod:`serving.api.videos`, :mod:`serving.api.generations`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Generic, Literal

from fastapi import Depends, Query, Request, Response
from starlette.datastructures import MutableHeaders

from serving.api.admission import Order, admit
from serving.api.auth import Caller, Credentials, EndUsers, Scope, current_caller, permit
from serving.api.content import deliver, deliver_preview
from serving.api.idempotency import REPLAYED_HEADER, wish_of
from serving.api.quota import rate_headers
from serving.api.schemas import Deleted, Item, JobCreate, Listing, Standing
from serving.api.services import Services
from serving.api.submission import decided
from serving.jobs import Admission, Job, Kind, Place, State, kind_of, new_id
from serving.jobs.queue import no_such
from serving.media import StoreError
from serving.plan.classes import DEFAULT_POLICIES
from serving.plan.errors import InvalidRequest, NotFound, ServiceUnavailable
from serving.plan.estimate import poll_after_ms
from serving.tracing import Span

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """Which part of a list."""

    after: str | None
    limit: int
    order: Literal["asc", "desc"]


def page(
    after: str | None = None,
    limit: Annotated[int, Query(ge=1)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Page:
    """From the query."""
    return Page(after, limit, order)


PageDep = Annotated[Page, Depends(page)]


@dataclass(frozen=True)
class Access:
    """Who asks for a file: somebody with a key, or whoever holds one of its URLs."""

    credentials: Credentials
    end_users: EndUsers
    expires: int | None
    signature: str | None


def access(
    credentials: Credentials,
    end_users: EndUsers = None,
    expires: int | None = None,
    signature: str | None = None,
) -> Access:
    """From the headers and the query."""
    return Access(credentials, end_users, expires, signature)


AccessDep = Annotated[Access, Depends(access)]


@dataclass(frozen=True)
class Resource(Generic[Item]):
    """``show``: a job as its owner sees it. ``solo_ms``: what it takes on an idle replica, as that
    is known now. ``object`` is its name on the wire, ``path`` where it is."""

    kind: Kind
    object: str
    path: str
    show: Callable[[Job, Standing], Item]
    solo_ms: Callable[[Services, Job], Awaitable[int]]

    async def submit(
        self,
        request: Request,
        caller: Caller,
        services: Services,
        span: Span,
        fields: JobCreate,
        order: Order,
    ) -> Response:
        """Accept what ``fields`` ask for, which is ``order``: it is durable once this answers.
        Under an `Idempotency-Key` it is made once, and answered as at first."""
        wish = wish_of(request, fields, fields.service_tier, fields.max_milli, services.quota)
        parent = span.traceparent
        admission = await admit(
            services, caller, new_id(self.kind), order, wish, traceparent=parent
        )
        decided(span, admission)
        headers = MutableHeaders(rate_headers(admission.allowance, round(time.time() * 1000)))
        if admission.replayed:
            headers[REPLAYED_HEADER] = "true"
        body = admission.response
        if body is None:
            body = await self._answer(services, admission, request, headers)
            if wish.idempotency_key and not admission.replayed:
                await _remember(services, caller.user, wish.idempotency_key, body)
        return Response(body, media_type="application/json", headers=headers)

    async def list(
        self, request: Request, caller: Caller, services: Services, page: Page
    ) -> Listing[Item]:
        """A page of what the caller has."""
        if page.limit > services.settings.list_limit_max:
            raise InvalidRequest(
                f"'limit' must be from 1 to {services.settings.list_limit_max}.", param="limit"
            )
        found = await services.queue.list(
            caller.user,
            kind=self.kind,
            limit=page.limit,
            after=page.after,
            newest_first=page.order == "desc",
        )
        items = [await self._present(services, job, request) for job in found.jobs]
        return Listing(
            data=items,
            first_id=items[0].id if items else None,
            last_id=items[-1].id if items else None,
            has_more=found.has_more,
        )

    async def retrieve(
        self, job_id: str, request: Request, response: Response, caller: Caller, services: Services
    ) -> Item:
        """Its state. One that failed or was cancelled says so."""
        self._check(job_id)
        job = await services.queue.get(job_id, user=caller.user)
        return await self._present(services, job, request, response.headers)

    async def cancel(
        self, job_id: str, request: Request, caller: Caller, services: Services
    ) -> Item:
        """Stop it: one that waits at once, one that runs at its next step. Safe to repeat."""
        self._check(job_id)
        job = await services.queue.cancel(job_id, user=caller.user)
        if job.state is not State.CANCELLED:
            raise InvalidRequest(
                f"The {self.kind.noun} has already {job.state}, so there is nothing to cancel.",
                code=f"{self.kind}_already_ended",
            )
        return await self._present(services, job, request)

    async def delete(self, job_id: str, caller: Caller, services: Services) -> Deleted:
        """Remove it and its files. One that is still active is cancelled."""
        self._check(job_id)
        await services.queue.delete(job_id, user=caller.user)
        try:
            await services.store.delete_prefix(job_id)
        except StoreError as error:
            # Not lost: the record's end made the files garbage, which is collected later.
            log.warning("files of %s are not deleted yet: %s", job_id, error)
        return Deleted(id=job_id, object=f"{self.object}.deleted")

    async def content(
        self, job_id: str, variant: str, request: Request, services: Services, access: Access
    ) -> Response:
        """One of its files, whole or by ``Range``: with a key, or with the ``expires`` and
        ``signature`` of one of its URLs."""
        self._check(job_id)
        job: Job | None
        if access.signature is not None:
            await services.signer.check(
                job_id, variant, access.expires, access.signature, time.time()
            )
            job = await services.queue.find(job_id)
            if job is None:
                raise NotFound(f"The {self.kind.noun} was deleted.", code=f"{self.kind}_not_found")
        else:
            caller = await current_caller(access.credentials, services, access.end_users)
            permit(caller, Scope.READ)
            job = await services.queue.get(job_id, user=caller.user)
        if variant == "preview":
            return await deliver_preview(job, request, services)
        return await deliver(job, variant, request, services)

    def _check(self, job_id: str) -> None:
        """:class:`NotFound` for the id of another kind of job."""
        if kind_of(job_id) is not self.kind:
            raise no_such(self.kind, job_id)

    async def _answer(
        self, services: Services, admission: Admission, request: Request, headers: MutableHeaders
    ) -> str:
        """The job as it is, as JSON."""
        job = admission.job
        if job is None:
            raise NotFound(
                f"The {self.kind.noun} that this request made was deleted.",
                code=f"{self.kind}_not_found",
            )
        try:
            item = await self._present(services, job, request, headers)
        except ServiceUnavailable:
            # It is accepted: an error now would only make the client submit it again.
            remaining_ms = await self._remaining_ms(services, job, None)
            item = self.show(job, Standing(remaining_ms=remaining_ms))
        return item.model_dump_json(by_alias=True)

    async def _present(
        self,
        services: Services,
        job: Job,
        request: Request,
        headers: MutableHeaders | None = None,
    ) -> Item:
        if job.terminal:
            variants = job.result["artifacts"] if job.result else ()
            urls = {each: await self._url(services, job, each, request) for each in variants}
            return self.show(job, Standing(content_urls=urls or None))
        place = await _place(services, job) if job.state is State.QUEUED else None
        remaining_ms = await self._remaining_ms(services, job, place)
        if headers is not None:
            headers["openai-poll-after-ms"] = str(poll_after_ms(remaining_ms))
        standing = Standing(
            queue_position=place.ahead if place else None,
            remaining_ms=remaining_ms,
            preview_url=await self._preview_url(services, job, request),
        )
        return self.show(job, standing)

    async def _preview_url(self, services: Services, job: Job, request: Request) -> str | None:
        """With the step in it, so that a page that shows it notices that there is a newer one."""
        if not job.preview:
            return None
        return f"{await self._url(services, job, 'preview', request)}&step={job.preview_step}"

    async def _url(self, services: Services, job: Job, variant: str, request: Request) -> str:
        """For elements of a page, which send no header: whoever holds such a URL has the file."""
        base = (services.settings.public_url or str(request.base_url)).rstrip("/")
        signed = await services.signer.sign(job.id, variant, time.time())
        return f"{base}{self.path}/{job.id}/content?{signed}"

    async def _remaining_ms(self, services: Services, job: Job, place: Place | None) -> int:
        """What the replica last said; for a queued job, what runs and waits before it, and
        itself."""
        if place is None and job.remaining_ms:
            return job.remaining_ms
        own_ms = await self.solo_ms(services, job)
        if place is None:
            return own_ms
        saved_ms = job.est_device_ms - job.left_device_ms
        return place.wait_ms + max(1, own_ms - saved_ms)


async def _place(services: Services, job: Job) -> Place:
    model = services.offered.get(job.pool)
    return await services.queue.place(job, model.classes if model else DEFAULT_POLICIES)


async def _remember(services: Services, user: str, idempotency_key: str, body: str) -> None:
    try:
        await services.queue.remember(user, idempotency_key, body)
    except ServiceUnavailable as error:
        # The key stands for its job all the same: a replay will show that as it is by then.
        log.warning("an answer is not kept for replays: %s", error)
