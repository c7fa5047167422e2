"""What a replica does with jobs: lease one, show progress, save, hand back, end.

Every write carries the fence of its lease and raises :class:`StaleLease` once the job is no
longer this replica's, and :class:`ServiceUnavailable` when Redis does not answer.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import PubSub

from serving.jobs.cell import Cell, error_json
from serving.jobs.job import Job, Phase, State
from serving.jobs.settings import JobSettings
from serving.plan.errors import CheckpointError, GenerationError, ReplicaLost, StaleLease

SUBSCRIBE_S = 5.0
SILENT_REPLICA_MS = 10_000
"""A replica that did not announce itself for this long is no longer listed."""


@dataclass(frozen=True)
class Drop:
    """The run of ``job_id`` under ``fence`` must stop at its next step."""

    job_id: str
    fence: int


class Leases:
    """The leases of one replica of one pool."""

    def __init__(
        self, cell: Cell, pool: str, replica: str, settings: JobSettings | None = None
    ) -> None:
        self._cell = cell
        self._pool = pool
        self._replica = replica
        self._settings = settings or JobSettings()
        self._token: str | None = None

    async def lease(self, lease_ms: int, *, busy: bool = False) -> Job | None:
        """The right to run the oldest waiting job of the pool for ``lease_ms``.

        A ``busy`` replica, one that runs something already, leaves a job that has just come to
        one that is idle, for half a second.
        """
        attempts_max = self._settings.attempts_max
        # Kept until there is an answer: a lease whose answer was lost is asked for again.
        self._token = self._token or secrets.token_hex(8)
        job = await self._cell.run_for_job(
            "lease",
            self._pool,
            self._replica,
            lease_ms,
            self._token,
            attempts_max,
            lost_error(attempts_max),
            int(busy),
        )
        self._token = None
        return job

    async def heartbeat(
        self, job: Job, *, lease_ms: int, phase: Phase, step: int, remaining_ms: int
    ) -> None:
        """Record progress and renew the lease."""
        _held(
            job,
            await self._cell.run(
                "heartbeat", job.id, job.fence, job.pool, lease_ms, phase, step, remaining_ms
            ),
        )

    async def checkpoint(self, job: Job, file: str, step: int) -> str:
        """Point the job at a checkpoint that is stored; the one it replaces, or ``""``."""
        held, before = await self._cell.run("checkpoint", job.id, job.fence, file, step)
        _held(job, held)
        return str(before)

    async def resumed(self, job: Job) -> None:
        """Count that the job goes on from its checkpoint."""
        _held(job, await self._cell.run("resume", job.id, job.fence, job.pool, "resumed"))

    async def refused(self, job: Job, error: CheckpointError) -> None:
        """Count why the job's checkpoint is of no use, and forget it."""
        _held(job, await self._cell.run("resume", job.id, job.fence, job.pool, error.code))

    async def give_back(self, job: Job) -> None:
        """Yield: the job returns to its place in the queue."""
        _held(job, await self._cell.run("yield", job.id, job.fence, job.pool))

    async def complete(self, job: Job, result: Mapping[str, Any]) -> None:
        """The clip is stored: end the job as completed."""
        await self._finish(job, State.COMPLETED, "result", json.dumps(result, sort_keys=True))

    async def fail(self, job: Job, error: GenerationError) -> None:
        """End the job as failed with this error."""
        await self._finish(job, State.FAILED, "error", error_json(error))

    async def _finish(self, job: Job, state: State, field: str, value: str) -> None:
        _held(
            job,
            await self._cell.run("finish", job.id, job.fence, job.pool, state, field, value),
        )

    async def announce(self, *, host: str, pid: int, slots: int, free: int, age_ms: int) -> None:
        """Say that this replica is there. To be repeated well within ``SILENT_REPLICA_MS``."""
        fields: dict[str, str | int] = {"host": host, "pid": pid, "slots": slots, "free": free}
        flat = [part for pair in fields.items() for part in pair]
        await self._cell.run(
            "announce", self._pool, self._replica, SILENT_REPLICA_MS, age_ms, *flat
        )

    async def retire(self) -> None:
        """Say that this replica leaves."""
        await self._cell.run("retire", self._pool, self._replica)

    @asynccontextmanager
    async def signals(self) -> AsyncIterator[Signals]:
        """Subscribe to the pool's wake and drop channels; in force once this is entered."""
        pubsub = self._cell.redis.pubsub()
        wake, drop = self._cell.key("wake", self._pool), self._cell.key("drop", self._pool)
        try:
            async with self._cell.answers():
                await pubsub.subscribe(wake, drop)
                for _ in (wake, drop):
                    await pubsub.get_message(timeout=SUBSCRIBE_S)
            yield Signals(self._cell, pubsub, wake)
        finally:
            await pubsub.aclose()


class Signals:
    """What a pool's channels say. Messages may be missed: they only save waiting."""

    def __init__(self, cell: Cell, pubsub: PubSub, wake: str) -> None:
        self._cell = cell
        self._pubsub = pubsub
        self._wake = wake

    async def next(self, timeout_s: float) -> Drop | None:
        """The next :class:`Drop`; None for a wake, or when nothing came in ``timeout_s``."""
        async with self._cell.answers():
            message = await self._pubsub.get_message(timeout=timeout_s)
        # A client that had to reconnect subscribes again, and is told so.
        if message is None or message["type"] != "message" or message["channel"] == self._wake:
            return None
        job_id, fence = message["data"].split(" ")
        return Drop(job_id, int(fence))


def lost_error(attempts_max: int) -> str:
    """What a job ends with that lost its replica too often."""
    return error_json(
        ReplicaLost(
            f"The replicas that ran this job went away {attempts_max} times, so it was given up. "
            "Nothing was charged. Submit it again, perhaps smaller; if it happens again, tell the "
            "operator."
        )
    )


def _held(job: Job, held: int) -> None:
    if not held:
        raise StaleLease(f"fence {job.fence} of {job.id} is no longer valid")
