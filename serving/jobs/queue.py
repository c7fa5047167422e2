"""What an ingress does with jobs: accept, show, list, cancel, delete, count.

After ``submit`` returns, the job survives any crash. Every method raises
:class:`ServiceUnavailable` when Redis does not answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quota.tiers import Tiers
from serving.jobs.admission import Admission, Allowance, Limits, Usage, Wish, may_pay
from serving.jobs.cell import Cell, error_json
from serving.jobs.job import Job, Kind, State, asked_text, kind_of
from serving.jobs.pool import PoolState
from serving.jobs.refused import Asked, refusal
from serving.jobs.settings import JobSettings
from serving.jobs.views import Explanation, PoolTop
from serving.plan.classes import DEFAULT_POLICIES, ClassPolicy, ServiceClass
from serving.plan.errors import (
    Cancelled,
    IdempotencyMismatch,
    NotFound,
)
from serving.plan.spec import Spec

NO_LIMITS = Limits()
NO_WISH = Wish()

_LISTS = {Kind.VIDEO: "jobs", Kind.AUDIO: "audio"}
"""The user's lists of jobs, as ``_keys.lua`` has them."""
_CANCELLED = error_json(Cancelled("Cancelled at your request."))


@dataclass(frozen=True)
class Place:
    """``ahead`` queued jobs, ``ahead_ms`` of work, go first as things stand; those that run have
    ``running_ms`` left, one each."""

    ahead: int
    ahead_ms: int
    running_ms: Sequence[int]

    @property
    def wait_ms(self) -> int:
        """Until its turn, if as many run side by side as do now."""
        return (sum(self.running_ms) + self.ahead_ms) // max(1, len(self.running_ms))


@dataclass(frozen=True)
class JobPage:
    jobs: Sequence[Job]
    has_more: bool


class JobQueue:
    """Jobs of one cell, as their owners see them."""

    def __init__(self, cell: Cell, settings: JobSettings | None = None) -> None:
        self._cell = cell
        self._settings = settings or JobSettings()

    async def submit(
        self,
        job_id: str,
        *,
        user: str,
        alias: str,
        spec: Spec,
        est_device_ms: int,
        price: int | None = None,
        limits: Limits = NO_LIMITS,
        wish: Wish = NO_WISH,
        traceparent: str = "",
        dry: bool = False,
    ) -> Admission:
        """Accept a job, or find the one that this request has made before. If ``dry``, only say
        whether it would be accepted and how: nothing is written. ``price`` is what it costs if it
        is paid from credits (milli-credits); None: it cannot be. ``traceparent`` names the span
        that its own spans belong under.

        Raises a :class:`Refused` whose ``allowance`` is the user's :class:`Allowance`, or
        :class:`IdempotencyMismatch`.
        """
        payable = price if may_pay(limits, wish) else None
        outcome, *answer = await self._cell.run(
            "submit" if payable is None else "submit_paid",
            job_id,
            user,
            spec.model,
            asked_text(alias, wish.service_tier, spec, traceparent),
            spec.shape,
            spec.rows,
            max(1, est_device_ms),
            self._settings.queue_max,
            self._settings.retention_s * 1000,
            *wish.arguments(),
            "" if payable is None else payable,
            "" if wish.max_credits is None else wish.max_credits,
            *limits.arguments(),
            "1" if dry else "",
        )
        match outcome:
            case "accepted":
                now, said = answer
                seq, created_ms, service_class, paid_from, credits = said.split()
                job = Job(
                    id=job_id,
                    user=user,
                    pool=spec.model,
                    alias=alias,
                    state=State.QUEUED,
                    spec=spec,
                    est_device_ms=est_device_ms,
                    left_device_ms=est_device_ms,
                    created_ms=int(created_ms),
                    queued_ms=int(created_ms),
                    traceparent=traceparent,
                    seq=int(seq),
                    service_tier=wish.service_tier,
                    service_class=ServiceClass(service_class),
                    paid_from=paid_from,
                    credits=int(credits),
                )
                return Admission(job, Allowance.of(limits, now))
            case "replayed":
                now, found, response = answer
                job_then = _job(found)
                return Admission(job_then, Allowance.of(limits, now), True, response or None)
            case "mismatch":
                raise IdempotencyMismatch(
                    "This Idempotency-Key was used with another body. Use a new key for a new "
                    "request.",
                    param="Idempotency-Key",
                )
        asked = Asked(spec.model, limits, wish, price or 0, self._settings.queue_max)
        raise refusal(outcome, answer, asked)

    async def remember(self, user: str, idempotency_key: str, response: str) -> None:
        """Keep what was answered to the first request of a key, for as long as the key counts."""
        redis, key = self._cell.redis, self._cell.key
        async with self._cell.answers():
            # Only the first answer, and no longer than the key is known.
            left_ms = await redis.pttl(key("idempotent", user, idempotency_key))
            if left_ms > 0:
                await redis.set(key("answer", user, idempotency_key), response, px=left_ms, nx=True)

    async def usage(
        self, user: str, limits: Limits, models: Sequence[tuple[str, int | None]] = ()
    ) -> Usage:
        """Where a user stands. ``models``: pools, each with its ``surge_ms``."""
        now, running, queued, surging = await self._cell.run(
            "usage",
            user,
            json.dumps(models),
            limits.requests_per_minute or "",
            limits.days,
        )
        surge = {pool: bool(is_so) for (pool, _), is_so in zip(models, surging, strict=True)}
        allowance = Allowance.of(limits, now)
        return Usage(allowance, int(running), int(queued), surge)

    async def apply_tiers(self, tiers: Tiers) -> None:
        """Let the queue know what it must of each tier. It counts for jobs that already wait."""
        fields: dict[str, str | float] = {"default": tiers.default_tier}
        for name, tier in tiers.tiers.items():
            fields[f"{name}:weight"] = tier.weight
            if tier.running_jobs is not None:
                fields[f"{name}:running_jobs"] = tier.running_jobs
        name = self._cell.key("tiers")
        async with self._cell.answers(), self._cell.redis.pipeline(transaction=True) as pipe:
            pipe.delete(name)
            pipe.hset(name, mapping=fields)
            await pipe.execute()

    async def apply_objectives(
        self, pools: Mapping[str, Mapping[ServiceClass, ClassPolicy]]
    ) -> None:
        """Let the queue know what jobs of each class of each pool may count on: it is measured by
        that from now on."""
        async with self._cell.answers(), self._cell.redis.pipeline(transaction=True) as pipe:
            for pool, classes in pools.items():
                fields: dict[str, float] = {}
                for name, policy in classes.items():
                    fields[f"{name}:factor"] = policy.factor
                    if policy.first_step_s is not None:
                        fields[f"{name}:first_step_ms"] = round(1000 * policy.first_step_s)
                pipe.delete(self._cell.key("objectives", pool))
                pipe.hset(self._cell.key("objectives", pool), mapping=fields)
            await pipe.execute()

    async def top(self, pool: str, *, tenants: int = 10) -> PoolTop:
        """Who waits in a pool, and who is next, by class and tenant."""
        return PoolTop.model_validate_json(await self._cell.run("top", pool, tenants))

    async def explain(self, job_id: str, *, jobs: int = 10) -> Explanation:
        """Why a job waits; :class:`NotFound` if there is none. ``jobs``: at most so many of those
        before it are listed."""
        answer = await self._cell.run("explain", job_id, jobs)
        if not answer:
            raise _none(job_id)
        return Explanation.model_validate_json(answer)

    async def get(self, job_id: str, *, user: str) -> Job:
        """The job, if it is this user's; :class:`NotFound` otherwise."""
        job = await self.find(job_id)
        if job is None or job.user != user:
            raise _none(job_id)
        return job

    async def find(self, job_id: str) -> Job | None:
        """The job, whoever owns it; none that is streamed as it is made."""
        async with self._cell.answers():
            raw = await self._cell.redis.hgetall(self._cell.key("job", job_id))
        return Job.from_hash(raw) if raw and "inline" not in raw else None

    async def place(
        self, job: Job, classes: Mapping[ServiceClass, ClassPolicy] = DEFAULT_POLICIES
    ) -> Place:
        """What is before a queued job of this pool, whose model has these ``classes``."""
        asked = job.user, job.service_class, job.left_device_ms
        return await self._place(job.id, job.pool, classes, *asked)

    async def place_of_new(
        self,
        pool: str,
        user: str,
        service_class: ServiceClass,
        est_device_ms: int,
        classes: Mapping[ServiceClass, ClassPolicy] = DEFAULT_POLICIES,
    ) -> Place:
        """What would be before a job that is submitted now."""
        return await self._place("", pool, classes, user, service_class, est_device_ms)

    async def _place(
        self,
        job_id: str,
        pool: str,
        classes: Mapping[ServiceClass, ClassPolicy],
        *asked: str | int,
    ) -> Place:
        shares = json.dumps({name: policy.share for name, policy in classes.items()})
        ahead, ahead_ms, *running_ms = await self._cell.run("place", job_id, pool, shares, *asked)
        return Place(int(ahead), int(ahead_ms), [int(ms) for ms in running_ms])

    async def list(
        self,
        user: str,
        *,
        limit: int,
        kind: Kind = Kind.VIDEO,
        after: str | None = None,
        newest_first: bool = True,
    ) -> JobPage:
        """A page of what the user has of a kind; ``after`` is the last id of the page before."""
        redis, mine = self._cell.redis, self._cell.key("user", user, _LISTS[kind])
        edge = f"({await self._seq_of(after, user, kind)}" if after is not None else None
        first, last = (edge or "+inf", "-inf") if newest_first else (edge or "-inf", "+inf")
        async with self._cell.answers():
            ids = await redis.zrange(
                mine, first, last, byscore=True, desc=newest_first, offset=0, num=limit + 1
            )
            async with redis.pipeline(transaction=False) as pipe:
                for job_id in ids[:limit]:
                    pipe.hgetall(self._cell.key("job", job_id))
                raws = await pipe.execute()
        # A record may go between the two round trips; it is simply not on the page.
        return JobPage([Job.from_hash(raw) for raw in raws if raw], has_more=len(ids) > limit)

    async def _seq_of(self, job_id: str, user: str, kind: Kind) -> int:
        """The order of a job of this user, also of one deleted within the last hour."""
        async with self._cell.answers():
            seq, owner = await self._cell.redis.hmget(self._cell.key("job", job_id), "seq", "user")
            if seq is None:
                gone = await self._cell.redis.get(self._cell.key("gone", job_id)) or " "
                seq, owner = gone.split(" ", 1)
        if owner != user or kind_of(job_id) is not kind:
            raise NotFound(
                f"'after' names no {kind.noun} of yours: '{job_id[:64]}'.",
                code=f"{kind}_not_found",
                param="after",
            )
        return int(seq)

    async def cancel(self, job_id: str, *, user: str) -> Job:
        """End a queued or running job as cancelled; one that has ended is returned unchanged."""
        job = await self._cell.run_for_job("cancel", job_id, user, _CANCELLED)
        if job is None:
            raise _none(job_id)
        return job

    async def delete(self, job_id: str, *, user: str) -> None:
        """Forget the job, cancelling it first if it had not ended. Its files become garbage."""
        if not await self._cell.run("delete", job_id, user, _CANCELLED):
            raise _none(job_id)

    async def pools(self, names: Sequence[str]) -> dict[str, PoolState]:
        """The named pools now, each as of one moment."""
        return {name: PoolState.of(await self._cell.run("observe", name)) for name in names}

    async def ping(self) -> None:
        """:class:`ServiceUnavailable` unless Redis answers."""
        async with self._cell.answers():
            await self._cell.redis.ping()


def _job(flat: Sequence[str]) -> Job | None:
    return Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None


def no_such(kind: Kind, job_id: str) -> NotFound:
    """To who asked for it as a job of this kind."""
    return NotFound(f"There is no {kind.noun} '{job_id[:64]}'.", code=f"{kind}_not_found")


def _none(job_id: str) -> NotFound:
    return no_such(kind_of(job_id), job_id)
