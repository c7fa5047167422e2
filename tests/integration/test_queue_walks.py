"""Random walks over the queue's scripts, held to the table of legal transitions after every step.

A failing walk prints its seed; ``WALKS`` may be raised to search further.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from serving.jobs import TERMINAL, Cell, Job, JobQueue, JobSettings, Leases, Phase, State, Upkeep
from serving.jobs.job import TRANSITIONS
from serving.plan.errors import CheckpointCorrupt, ModelFailed, NotFound, QueueFull, StaleLease
from tests.jobs import submit

WALKS = 8
OPERATIONS = 250
LIMITS = JobSettings(queue_max=6, garbage_s=0)


class Walk:
    """A few users and replicas, who do anything at any time, stale or not."""

    def __init__(self, seed: int, cell: Cell) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.cell = cell
        self.queue, self.upkeep = JobQueue(cell, LIMITS), Upkeep(cell, LIMITS)
        self.replicas = [Leases(cell, "demo-wan", f"r{i}", LIMITS) for i in range(3)]
        self.held: list[tuple[Leases, Job]] = []
        self.known: dict[str, State] = {}
        self.ended: Counter[State] = Counter()

    async def step(self) -> None:
        operation = self.random.choice(
            [self.cancel, self.delete, self.upkeep.tidy, self.lose]
            if self.random.random() < 0.25
            else [self.submit, self.lease, self.run, self.run, self.end]
        )
        with suppress(StaleLease, NotFound, QueueFull):
            await operation()
        await self.check()

    async def submit(self) -> None:
        job = await submit(self.queue)
        self.known[job.id] = State.QUEUED

    async def lease(self) -> None:
        replica = self.random.choice(self.replicas)
        if job := await replica.lease(60_000):
            self.held.append((replica, job))

    async def run(self) -> None:
        if not self.held:
            return
        replica, job = self.random.choice(self.held[-5:])
        match self.random.randrange(5):
            case 0:
                await replica.heartbeat(
                    job, lease_ms=60_000, phase=Phase.DENOISE, step=1, remaining_ms=1
                )
            case 1:
                await replica.checkpoint(job, f"{job.fence}", 1)
            case 2:
                await replica.resumed(job)
            case 3:
                await replica.refused(job, CheckpointCorrupt("x"))
            case 4:
                await replica.give_back(job)

    async def end(self) -> None:
        if self.held:
            replica, job = self.random.choice(self.held[-5:])
            if self.random.random() < 0.5:
                await replica.complete(job, {"by": job.fence})
            else:
                await replica.fail(job, ModelFailed("x"))

    async def lose(self) -> None:
        """A lease runs out."""
        leased = await self.cell.redis.zrange(self.cell.key("leased", "demo-wan"), 0, -1)
        if leased:
            job_id = self.random.choice(leased)
            await self.cell.redis.zadd(self.cell.key("leased", "demo-wan"), {job_id: 1})

    async def cancel(self) -> None:
        if self.known:
            await self.queue.cancel(self.random.choice(list(self.known)), user="ann")

    async def delete(self) -> None:
        if not self.known:
            return
        job_id = self.random.choice(list(self.known))
        await self.queue.delete(job_id, user="ann")
        if self.known.pop(job_id) not in TERMINAL:
            self.ended[State.CANCELLED] += 1

    async def check(self) -> None:
        redis, key = self.cell.redis, self.cell.key
        jobs = {}
        for job_id, before in self.known.items():
            job = await self.queue.get(job_id, user="ann")
            jobs[job_id] = job
            # A script may do two things: reap a lease and give the job out again.
            reachable = TRANSITIONS[before] | {
                after for between in TRANSITIONS[before] for after in TRANSITIONS[between]
            }
            assert job.state == before or job.state in reachable, f"{before} to {job.state}"
            if job.terminal and before not in TERMINAL:
                self.ended[job.state] += 1
                assert bool(job.result) is (job.state is State.COMPLETED)
                assert job.expires_ms > 0
            self.known[job_id] = job.state
        queued = await redis.zrange(key("queued", "demo-wan"), 0, -1)
        leased = await redis.zrange(key("leased", "demo-wan"), 0, -1)
        assert set(queued) == {i for i, job in jobs.items() if job.state is State.QUEUED}
        assert set(leased) == {i for i, job in jobs.items() if job.state is State.IN_PROGRESS}
        assert queued == sorted(queued, key=lambda i: jobs[i].seq), "they keep their places"
        ended = {state: n for state, n in self.ended.items() if n}
        assert (await self.queue.pools(["demo-wan"]))["demo-wan"].ended == ended
        fences = [job.fence for job in jobs.values() if job.fence]
        assert len(fences) == len(set(fences)), "a fence is given out once"


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(WALKS))
async def test_no_walk_leaves_the_table_or_ends_a_job_twice(redis: Redis, seed: int) -> None:
    walk = Walk(seed, Cell(redis))
    for _ in range(OPERATIONS):
        await walk.step()
    assert {State.COMPLETED, State.FAILED, State.CANCELLED} <= set(walk.ended)
