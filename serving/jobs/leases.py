"""What a replica does with jobs: lease one, show progress, save, hand back, end.

Every write carries the fence of its lease and raises :class:`StaleLease` once the job is no
longer this replica's, and :class:`ServiceUnavailable` when Redis does not answer.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import PubSub

from serving.jobs.cell import Cell, error_json
from serving.jobs.job import Job, Phase, State
from serving.jobs.pool import ReplicaStatus
from serving.jobs.room import IDLE, Room
from serving.jobs.settings import JobSettings
from serving.plan.classes import DEFAULT_POLICIES, ClassPolicy, ServiceClass
from serving.plan.errors import CheckpointError, GenerationError, ReplicaLost, StaleLease
from serving.plan.rank import Contender

SUBSCRIBE_S = 5.0
NOBODY = "-"
SILENT_REPLICA_MS = 10_000
"""A replica that did not announce itself for this long is no longer listed."""


@dataclass(frozen=True)
class Drop:
    """The run of ``job_id`` under ``fence`` must stop at its next step."""

    job_id: str
    fence: int


@dataclass(frozen=True)
class Wake:
    """A job waits, since ``now_ms`` by the clock of its ``created_ms``."""

    job: Contender
    now_ms: int


@dataclass(frozen=True)
class Lease:
    """The right to run ``job``, which was submitted ``waited_ms`` ago.

    ``preempts`` names the run ``(job id, fence)`` that must be stopped and handed back for it.
    """

    job: Job
    waited_ms: int
    preempts: tuple[str, int] | None = None


class Leases:
    """The leases of one replica of one pool."""

    def __init__(
        self,
        cell: Cell,
        pool: str,
        replica: str,
        settings: JobSettings | None = None,
        classes: Mapping[ServiceClass, ClassPolicy] = DEFAULT_POLICIES,
    ) -> None:
        self._cell = cell
        self._shares = {name: policy.share for name, policy in classes.items()}
        self._pool = pool
        self._replica = replica
        self._settings = settings or JobSettings()
        self._token: str | None = None

    async def lease(self, lease_ms: int, room: Room = IDLE) -> Lease | None:
        """The right to run, for ``lease_ms``, the first waiting job that is of use here.

        ``lua/lease.lua`` says which that is. Without a free slot it goes in the place of a run.
        """
        attempts_max = self._settings.attempts_max
        # Kept until there is an answer: a lease whose answer was lost is asked for again.
        self._token = self._token or secrets.token_hex(8)
        answer = await self._cell.run(
            "lease",
            self._pool,
            self._replica,
            lease_ms,
            self._token,
            attempts_max,
            lost_error(attempts_max),
            room.to_json(self._settings.quantum_s, self._shares),
        )
        self._token = None
        return _lease(answer) if answer else None

    async def heartbeat(
        self,
        job: Job,
        *,
        lease_ms: int,
        phase: Phase,
        step: int,
        remaining_ms: int,
        spent_ms: int = 0,
    ) -> None:
        """Record progress and renew the lease. ``spent_ms`` is the device time of this lease."""
        spent_ms += job.spent_ms
        run = "heartbeat", job.id, job.fence, job.pool
        _held(job, await self._cell.run(*run, lease_ms, phase, step, remaining_ms, spent_ms))

    async def checkpoint(self, job: Job, file: str, step: int, left_device_ms: int) -> str:
        """Point the job at a checkpoint that is stored; the one it replaces, or ``""``."""
        held, before = await self._cell.run(
            "checkpoint", job.id, job.fence, file, step, left_device_ms
        )
        _held(job, held)
        return str(before)

    async def preview(self, job: Job, file: str, step: int) -> None:
        """Point the job at a preview that is stored. A job just given back still takes it."""
        _held(job, await self._cell.run("preview", job.id, job.fence, file, step))

    async def resumed(self, job: Job, *, from_memory: bool = False) -> None:
        """Count that the job goes on from its checkpoint."""
        outcome = "resumed_from_memory" if from_memory else "resumed"
        _held(job, await self._cell.run("resume", job.id, job.fence, job.pool, outcome))

    async def refused(self, job: Job, error: CheckpointError) -> None:
        """Count why the job's checkpoint is of no use, and forget it."""
        _held(job, await self._cell.run("resume", job.id, job.fence, job.pool, error.code))

    async def give_back(
        self, job: Job, *, holding: bool = False, spent_ms: int = 0, step: int = 0
    ) -> None:
        """Yield: the job returns to the queue. ``holding``: its checkpoint is in memory here.
        ``step``: how many of its steps were done; those not saved will be done again."""
        holder = self._replica if holding else ""
        spent_ms += job.spent_ms
        run = "yield", job.id, job.fence, job.pool
        _held(job, await self._cell.run(*run, holder, spent_ms, step))

    async def complete(self, job: Job, result: Mapping[str, Any], *, spent_ms: int = 0) -> None:
        """The clip is stored: end the job as completed."""
        value = json.dumps(result, sort_keys=True)
        await self._finish(job, State.COMPLETED, "result", value, spent_ms)

    async def fail(self, job: Job, error: GenerationError, *, spent_ms: int = 0) -> None:
        """End the job as failed with this error."""
        await self._finish(job, State.FAILED, "error", error_json(error), spent_ms)

    async def _finish(self, job: Job, state: State, field: str, value: str, spent_ms: int) -> None:
        spent_ms += job.spent_ms
        run = "finish", job.id, job.fence, job.pool
        _held(job, await self._cell.run(*run, state, field, value, spent_ms))

    async def announce(
        self,
        *,
        host: str,
        pid: int,
        slots: int,
        free: int,
        age_ms: int,
        device: str = "",
        state: ReplicaStatus | None = None,
        start_ms: int | None = None,
    ) -> None:
        """Say that this replica is there. To be repeated well within ``SILENT_REPLICA_MS``.

        ``state``: idle or busy, by its slots, if nothing else is said. ``start_ms``: that it became
        ready, and how long that took; to be said until it was answered.
        """
        if state is None:
            state = ReplicaStatus.IDLE if free == slots else ReplicaStatus.BUSY
        fields: dict[str, str | int] = {"host": host, "pid": pid, "slots": slots, "free": free}
        fields["device"] = device
        flat = [part for pair in fields.items() for part in pair]
        started = "" if start_ms is None else start_ms
        me = self._pool, self._replica
        await self._cell.run("announce", *me, SILENT_REPLICA_MS, age_ms, state, started, *flat)

    async def start_failed(self, error: str) -> None:
        """Say that this replica, which had announced that it starts, will not become ready.
        ``error``: the name of what it died of."""
        await self._cell.run("start_failed", self._pool, self._replica, error)

    async def tally(self, counted: Mapping[str, int]) -> None:
        """Add what this replica counted, by name, to the sums of its pool."""
        flat = [part for pair in counted.items() for part in pair]
        await self._cell.run("tally", self._pool, *flat)

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

    async def next(self, timeout_s: float) -> Drop | Wake | None:
        """The next one; None when nothing came in ``timeout_s``."""
        async with self._cell.answers():
            message = await self._pubsub.get_message(timeout=timeout_s)
        # A client that had to reconnect subscribes again, and is told so.
        if message is None or message["type"] != "message":
            return None
        words = message["data"].split(" ")
        if message["channel"] == self._wake:
            now_ms, *waiting = map(int, words)
            return Wake(Contender(*waiting), now_ms)
        return Drop(words[0], int(words[1]))


def lost_error(attempts_max: int) -> str:
    """What a job ends with that lost its replica too often."""
    return error_json(
        ReplicaLost(
            f"The replicas that ran this job went away {attempts_max} times, so it was given up. "
            "Nothing was charged. Submit it again, perhaps smaller; if it happens again, tell the "
            "operator."
        )
    )


def _lease(answer: Sequence[Any]) -> Lease:
    now_ms, victim, flat = answer
    job = Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))
    preempts = None
    if victim != NOBODY:
        victim_id, fence = victim.split("/")
        preempts = (victim_id, int(fence))
    return Lease(job, int(now_ms) - job.created_ms, preempts)


def _held(job: Job, held: int) -> None:
    if not held:
        raise StaleLease(f"fence {job.fence} of {job.id} is no longer valid")
