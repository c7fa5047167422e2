"""The durable queue: what an ingress and a replica can do with jobs.

Each method is one round trip and one atomic script; after ``submit`` returns, the job
survives any crash. A Redis that does not answer is :class:`ServiceUnavailable`, and since
every script may be repeated with the same arguments, the caller may simply try again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from serving.jobs.job import Job, Phase, State
from serving.jobs.scripts import Scripts
from serving.plan.clip import ClipSpec
from serving.plan.errors import (
    Cancelled,
    GenerationError,
    NotFound,
    QueueFull,
    ReplicaLost,
    ServiceUnavailable,
    StaleLease,
)

CELL = "{reelserve}"
ATTEMPTS_MAX = 3
SUBSCRIBE_S = 5.0
RUNNING_READ_MAX = 64
"""How many running jobs an estimate looks at: more replicas than these are alike."""


def _error_json(error: GenerationError) -> str:
    return json.dumps({"code": error.code, "message": error.message}, sort_keys=True)


_CANCELLED = _error_json(Cancelled("Cancelled at your request."))


@dataclass(frozen=True)
class PoolState:
    """Counts of one pool at one moment; ``oldest_ms`` is how long the head has waited."""

    queued: int
    in_progress: int
    oldest_ms: int
    ended: Mapping[State, int]


@dataclass(frozen=True)
class Place:
    """``ahead`` queued jobs go first; those that run have ``running_ms`` left, one each."""

    ahead: int
    running_ms: Sequence[int]


@dataclass(frozen=True)
class JobPage:
    jobs: Sequence[Job]
    has_more: bool


class JobQueue:
    """Jobs of one cell, over a Redis client that decodes responses."""

    def __init__(self, redis: Redis, cell: str = CELL, attempts_max: int = ATTEMPTS_MAX) -> None:
        # Its annotations say bytes or str; a client that decodes responses gives str.
        self._redis: Any = redis
        self.cell = cell
        self._scripts = Scripts(redis, cell)
        self._attempts_max = attempts_max
        lost = ReplicaLost(
            f"The replicas that ran this job went away {attempts_max} times. "
            "Nothing was charged; submit it again, and if it happens again tell the operator."
        )
        self._lost_error = _error_json(lost)

    def _key(self, *parts: str) -> str:
        return ":".join((self.cell, *parts))

    # What an ingress does.

    async def submit(
        self,
        job_id: str,
        *,
        user: str,
        alias: str,
        spec: ClipSpec,
        est_device_ms: int,
        queued_max: int,
    ) -> Job:
        """Accept a job. :class:`QueueFull` when ``queued_max`` jobs of the model wait."""
        async with _redis_answers():
            status, _ = await self._scripts(
                "submit",
                job_id,
                user,
                spec.model,
                alias,
                spec.model_dump_json(),
                est_device_ms,
                queued_max,
            )
        if status == "full":
            raise QueueFull(
                f"{queued_max} jobs already wait for '{spec.model}', which is the limit. "
                "Try again in a minute."
            )
        return await self.get(job_id, user=user)

    async def get(self, job_id: str, *, user: str) -> Job:
        """The job, if it is this user's; :class:`NotFound` otherwise."""
        async with _redis_answers():
            raw = await self._redis.hgetall(self._key("job", job_id))
        if not raw or raw["user"] != user:
            raise NotFound(f"There is no video '{job_id[:64]}'.", code="video_not_found")
        return Job.from_hash(raw)

    async def place(self, job: Job) -> Place:
        """What is before a queued job of this pool."""
        async with _redis_answers(), self._redis.pipeline(transaction=True) as pipe:
            pipe.zrank(self._key("queued", job.pool), job.id)
            pipe.zrange(self._key("leased", job.pool), 0, RUNNING_READ_MAX - 1)
            ahead, running = await pipe.execute()
            for running_id in running:
                pipe.hget(self._key("job", running_id), "remaining_ms")
            left = await pipe.execute() if running else []
        return Place(ahead=int(ahead or 0), running_ms=[int(ms or 0) for ms in left])

    async def list(
        self, user: str, *, limit: int, after: str | None = None, newest_first: bool = True
    ) -> JobPage:
        """A page of the user's jobs; ``after`` is the last id of the page before it."""
        mine = self._key("user", user, "jobs")
        async with _redis_answers():
            start = 0
            if after is not None:
                rank = await (
                    self._redis.zrevrank(mine, after)
                    if newest_first
                    else self._redis.zrank(mine, after)
                )
                if rank is None:
                    raise NotFound(
                        f"'after' names no video of yours: '{after[:64]}'.",
                        code="video_not_found",
                        param="after",
                    )
                start = int(rank) + 1
            ids = await self._redis.zrange(mine, start, start + limit, desc=newest_first)
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids[:limit]:
                    pipe.hgetall(self._key("job", job_id))
                raws = await pipe.execute()
        # A record may go between the two round trips; it is simply not on the page.
        return JobPage([Job.from_hash(raw) for raw in raws if raw], has_more=len(ids) > limit)

    async def cancel(self, job_id: str, *, user: str) -> Job:
        """End a queued or running job as cancelled; one that has ended is returned unchanged."""
        async with _redis_answers():
            raw = _pairs(await self._scripts("cancel", job_id, user, _CANCELLED))
        if not raw:
            raise NotFound(f"There is no video '{job_id[:64]}'.", code="video_not_found")
        return Job.from_hash(raw)

    async def delete(self, job_id: str, *, user: str) -> None:
        """Forget the job, cancelling it first if it had not ended."""
        async with _redis_answers():
            if not await self._scripts("delete", job_id, user, _CANCELLED):
                raise NotFound(f"There is no video '{job_id[:64]}'.", code="video_not_found")

    async def pools(self, names: Sequence[str]) -> dict[str, PoolState]:
        """Counts of the named pools, in one round trip."""
        async with _redis_answers():
            seconds, micros = await self._redis.time()
            now_ms = seconds * 1000 + micros // 1000
            async with self._redis.pipeline(transaction=True) as pipe:
                for pool in names:
                    pipe.zcard(self._key("queued", pool))
                    pipe.zcard(self._key("leased", pool))
                    pipe.hgetall(self._key("ended", pool))
                    pipe.zrange(self._key("queued", pool), 0, 0)
                answers = await pipe.execute()
                heads = [answers[i + 3] for i in range(0, len(answers), 4)]
                for head in heads:
                    pipe.hget(self._key("job", head[0] if head else ""), "created_ms")
                created = await pipe.execute() if names else []
        return {
            pool: PoolState(
                queued=answers[4 * i],
                in_progress=answers[4 * i + 1],
                oldest_ms=max(0, now_ms - int(created[i])) if created[i] else 0,
                ended={State(name): int(count) for name, count in answers[4 * i + 2].items()},
            )
            for i, pool in enumerate(names)
        }

    async def ping(self) -> None:
        """:class:`ServiceUnavailable` unless Redis answers."""
        async with _redis_answers():
            await self._redis.ping()

    # What a replica does.

    async def lease(self, pool: str, *, replica: str, lease_ms: int) -> Job | None:
        """The right to run the oldest waiting job of the pool for ``lease_ms``."""
        async with _redis_answers():
            raw = _pairs(
                await self._scripts(
                    "lease", pool, replica, lease_ms, self._attempts_max, self._lost_error
                )
            )
        return Job.from_hash(raw) if raw else None

    async def heartbeat(
        self, job: Job, *, lease_ms: int, phase: Phase, step: int, remaining_ms: int
    ) -> None:
        """Record progress and renew the lease; :class:`StaleLease` if it is no longer ours."""
        async with _redis_answers():
            held = await self._scripts(
                "heartbeat", job.id, job.fence, job.pool, lease_ms, phase, step, remaining_ms
            )
        self._held(job, held)

    async def complete(self, job: Job, result: Mapping[str, Any]) -> None:
        """The clip is stored: end the job as completed; :class:`StaleLease` if not ours."""
        await self._finish(job, State.COMPLETED, "result", json.dumps(result, sort_keys=True))

    async def fail(self, job: Job, error: GenerationError) -> None:
        """End the job as failed with this error; :class:`StaleLease` if not ours."""
        await self._finish(job, State.FAILED, "error", _error_json(error))

    async def _finish(self, job: Job, state: State, field: str, value: str) -> None:
        async with _redis_answers():
            held = await self._scripts("finish", job.id, job.fence, job.pool, state, field, value)
        self._held(job, held)

    async def give_back(self, job: Job) -> None:
        """Yield: the job returns to its place in the queue; :class:`StaleLease` if not ours."""
        async with _redis_answers():
            held = await self._scripts("yield", job.id, job.fence, job.pool)
        self._held(job, held)

    @asynccontextmanager
    async def signals(self, pool: str) -> AsyncIterator[Signals]:
        """Subscribe to the pool's wake and drop channels; in force once this is entered."""
        pubsub = self._redis.pubsub()
        wake, drop = self._key("wake", pool), self._key("drop", pool)
        try:
            async with _redis_answers():
                await pubsub.subscribe(wake, drop)
                for _ in (wake, drop):
                    await pubsub.get_message(timeout=SUBSCRIBE_S)
            yield Signals(pubsub, wake)
        finally:
            await pubsub.aclose()

    def _held(self, job: Job, held: int) -> None:
        if not held:
            raise StaleLease(f"fence {job.fence} of {job.id} is no longer valid")


@dataclass(frozen=True)
class Dropped:
    """The run of ``job_id`` under ``fence`` must stop at its next step."""

    job_id: str
    fence: int


class Signals:
    """What a pool's channels say. Messages may be missed: they only save waiting."""

    def __init__(self, pubsub: PubSub, wake: str) -> None:
        self._pubsub = pubsub
        self._wake = wake

    async def next(self, timeout_s: float) -> Dropped | None:
        """The next :class:`Dropped`; None for a wake, or when nothing came in ``timeout_s``."""
        async with _redis_answers():
            message = await self._pubsub.get_message(timeout=timeout_s)
        # A client that had to reconnect subscribes again, and is told so.
        if message is None or message["type"] != "message" or message["channel"] == self._wake:
            return None
        job_id, fence = message["data"].split(" ")
        return Dropped(job_id, int(fence))


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


@asynccontextmanager
async def _redis_answers() -> AsyncIterator[None]:
    try:
        yield
    except RedisError as error:
        raise ServiceUnavailable("The job store does not answer. Try again shortly.") from error
