"""Work that its asker hears while it is made, such as speech: admitted and leased in one step.

An ingress is its own replica here. The lease is a job's: it is renewed as the work gets on, every
write carries its fence, and an ingress that dies lets it lapse. Then the job has failed, and what
was held for it goes back. No job of this kind waits, is tried again, or is in anybody's list.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from serving.jobs.admission import Allowance, Limits, Wish, may_pay
from serving.jobs.cell import Cell, error_json
from serving.jobs.job import State
from serving.jobs.refused import Asked, refusal
from serving.jobs.settings import JobSettings
from serving.plan.classes import ServiceClass
from serving.plan.errors import Cancelled, GenerationError, StaleLease

_LEFT = error_json(Cancelled("Whoever listened left before the end."))
SPEAKING = "store"
"""The phase of a run that holds no slot of a replica."""


@dataclass(frozen=True)
class InlineLease:
    """The right to make a job and to stream it. ``credits`` (milli-credits) are held for the whole
    of it; ``created_ms`` is Redis's clock. ``allowance`` is what its user has left."""

    id: str
    user: str
    pool: str
    fence: int
    service_class: ServiceClass
    paid_from: str
    credits: int
    created_ms: int
    allowance: Allowance


class InlineLeases:
    """Of one ingress. Every method raises :class:`ServiceUnavailable` when Redis is away."""

    def __init__(self, cell: Cell, holder: str, settings: JobSettings | None = None) -> None:
        self._cell, self._holder = cell, holder
        self._settings = settings or JobSettings()

    @property
    def lease_s(self) -> float:
        """For how long a lease holds unless it is renewed."""
        return self._settings.lease_s_min

    async def grant(
        self,
        job_id: str,
        *,
        user: str,
        pool: str,
        alias: str,
        asked: Any,
        est_device_ms: int,
        price: int | None,
        limits: Limits,
        wish: Wish,
        traceparent: str = "",
    ) -> InlineLease:
        """Admit a job as ``JobQueue.submit`` does, and lease it. ``asked``: what it is to be, as
        JSON values. An id that was granted has the same lease again, so a lost answer costs
        nothing. A :class:`Wish`'s keys do not count: what was heard cannot be answered again.

        Raises a :class:`Refused` whose ``allowance`` is the user's.
        """
        pays = price is not None and may_pay(limits, wish)
        settings = self._settings
        outcome, *answer = await self._cell.run(
            "submit_inline",
            job_id,
            user,
            pool,
            f"{alias} {wish.service_tier} {traceparent or '-'} {json.dumps(asked)}",
            "-",
            1,
            max(1, est_device_ms),
            settings.inline_max,
            settings.inline_retention_s * 1000,
            wish.service_tier,
            "",
            "",
            0,
            "",
            0,
            price if price is not None and pays else "",
            "" if wish.max_credits is None else wish.max_credits,
            *limits.arguments(),
            "",
            round(1000 * settings.lease_s_min),
            self._holder,
            settings.inline_own,
        )
        if outcome == "accepted":
            now, said = answer
            _, created_ms, service_class, paid_from, credits, fence = said.split()
            return InlineLease(
                id=job_id,
                user=user,
                pool=pool,
                fence=int(fence),
                service_class=ServiceClass(service_class),
                paid_from=paid_from,
                credits=int(credits),
                created_ms=int(created_ms),
                allowance=Allowance.of(limits, now),
            )
        own = settings.inline_own if outcome == "streams" else settings.inline_max
        raise refusal(outcome, answer, Asked(pool, limits, wish, price or 0, own))

    async def renew(
        self, lease: InlineLease, *, spent_ms: int, step: int, remaining_ms: int
    ) -> None:
        """It got on: ``step`` pieces were made, the first of which is when it was first heard.

        :class:`StaleLease` once it is no longer this ingress's to make.
        """
        lease_ms = round(1000 * self._settings.lease_s_min)
        progress = lease_ms, SPEAKING, step, remaining_ms, spent_ms
        self._held(lease, await self._cell.run("heartbeat", *_run(lease), *progress))

    async def complete(self, lease: InlineLease, result: Any, *, spent_ms: int) -> None:
        """All of it was heard, and is paid."""
        value = json.dumps(result, sort_keys=True)
        ends = State.COMPLETED, "result", value, spent_ms
        self._held(lease, await self._cell.run("finish", *_run(lease), *ends))

    async def left(self, lease: InlineLease, *, made: float, spent_ms: int) -> None:
        """Its listener left after this part of it (0 to 1), which is paid, to the milli-credit and
        in favour of who left."""
        made_credits = int(min(1.0, max(0.0, made)) * lease.credits)
        ends = State.CANCELLED, "error", _LEFT, spent_ms, made_credits
        self._held(lease, await self._cell.run("finish", *_run(lease), *ends))

    async def fail(self, lease: InlineLease, error: GenerationError, *, spent_ms: int) -> None:
        """It cannot be made: nothing of it is paid."""
        ends = State.FAILED, "error", error_json(error), spent_ms
        self._held(lease, await self._cell.run("finish", *_run(lease), *ends))

    def _held(self, lease: InlineLease, held: int) -> None:
        if not held:
            raise StaleLease(f"fence {lease.fence} of {lease.id} is no longer valid")


def _run(lease: InlineLease) -> tuple[str, int, str]:
    return lease.id, lease.fence, lease.pool
