"""Random walks over the queue's scripts, held to the table of legal transitions after every step.

A failing walk prints its seed; ``WALKS`` may be raised to search further.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from quota.ledger import Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import (
    TERMINAL,
    Cell,
    Job,
    JobQueue,
    JobSettings,
    Leases,
    Phase,
    Resident,
    Room,
    Rows,
    State,
    Upkeep,
    Wish,
)
from serving.jobs.job import TRANSITIONS
from serving.jobs.queue import NO_WISH
from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.errors import CheckpointCorrupt, ModelFailed, NotFound, QueueFull, StaleLease
from serving.plan.rank import ORDERS, PREEMPTIONS_MAX, Contender
from tests.jobs import submit

WALKS = 8
OPERATIONS = 250
SHORT_MS, LONG_MS = 1000, 90_000
LIMITS = JobSettings(queue_max=6, garbage_s=0, quantum_s=0)


class Walk:
    """A few users and replicas, who do anything at any time, stale or not."""

    def __init__(self, seed: int, cell: Cell, wish: Wish = NO_WISH, price: int = 0) -> None:
        self.wish, self.price = wish, price
        self.random = random.Random(seed)  # noqa: S311
        self.cell = cell
        self.queue, self.upkeep = JobQueue(cell, LIMITS), Upkeep(cell, LIMITS)
        self.replicas = [Leases(cell, "demo-wan", f"r{i}", LIMITS) for i in range(3)]
        self.held: list[tuple[Leases, Job]] = []
        self.known: dict[str, State] = {}
        self.ended: Counter[State] = Counter()
        self.preempted = 0

    @property
    def service_class(self) -> ServiceClass:
        return ServiceClass.BURST if self.price else ServiceClass.STANDARD

    async def step(self) -> None:
        operation = self.random.choice(
            [self.cancel, self.delete, self.upkeep.tidy, self.lose]
            if self.random.random() < 0.25
            else [self.submit, self.lease, self.lease, self.preempt, self.run, self.run, self.end]
        )
        with suppress(StaleLease, NotFound, QueueFull):
            await operation()
        await self.check()

    async def submit(self, est_device_ms: int = LONG_MS) -> None:
        job = await submit(
            self.queue, est_device_ms=est_device_ms, wish=self.wish, price=self.price
        )
        self.known[job.id] = State.QUEUED

    async def lease(self) -> None:
        """For a replica that is idle, or busy with what it has, or had."""
        replica = self.random.choice(self.replicas)
        had = [job for mine, job in self.held[-5:] if mine is replica]
        await self.ask(replica, had[: self.random.randrange(3)], free=1)

    async def preempt(self) -> None:
        """A short job comes, and a full replica asks."""
        await self.submit(est_device_ms=SHORT_MS)
        live = [
            (replica, job)
            for replica, job in self.held
            if self.known.get(job.id) is State.IN_PROGRESS and job.est_device_ms == LONG_MS
        ]
        if live:
            replica, job = self.random.choice(live)
            await self.ask(replica, [job], free=0)

    async def ask(self, replica: Leases, runs: list[Job], free: int) -> None:
        room = Room(
            free=free,
            runs=[Resident(job.id, job.fence, job.est_device_ms, 1, True) for job in runs],
            shapes={job.spec.shape: Rows(4, 4) for job in runs},
        )
        lease = await replica.lease(60_000, room)
        if lease is None:
            return
        self.held.append((replica, lease.job))
        await replica.heartbeat(
            lease.job, lease_ms=60_000, phase=Phase.ENCODE, step=0, remaining_ms=LONG_MS
        )
        assert bool(lease.preempts) is not bool(free)
        if lease.preempts:
            assert lease.preempts in [(job.id, job.fence) for job in runs]
            victim = await self.queue.get(lease.preempts[0], user="ann")
            assert (victim.state, victim.fence) == (State.IN_PROGRESS, lease.preempts[1])
            assert victim.preempted <= PREEMPTIONS_MAX
            self.preempted += 1

    async def run(self) -> None:
        if not self.held:
            return
        replica, job = self.random.choice(self.held[-5:])
        match self.random.randrange(5):
            case 0:
                await replica.heartbeat(
                    job, lease_ms=60_000, phase=Phase.DENOISE, step=1, remaining_ms=LONG_MS
                )
            case 1:
                await replica.checkpoint(job, f"{job.fence}", 1, job.est_device_ms // 2)
            case 2:
                await replica.resumed(job)
            case 3:
                await replica.refused(job, CheckpointCorrupt("x"))
            case 4:
                await replica.give_back(job, holding=self.random.random() < 0.5)

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
        for order in ORDERS:
            line = key("line", "demo-wan", self.service_class, "ann", order.name)
            places = await redis.zrange(line, 0, -1)
            waiting = [jobs[place.split(" ")[-1]] for place in places]
            assert {job.id for job in waiting} == set(queued)
            assert waiting == sorted(waiting, key=lambda job: (order.score(_wants(job)), job.seq))
        ended = {state: n for state, n in self.ended.items() if n}
        assert (await self.queue.pools(["demo-wan"]))["demo-wan"].ended == ended
        fences = [job.fence for job in jobs.values() if job.fence]
        assert len(fences) == len(set(fences)), "a fence is given out once"


def _wants(job: Job) -> Contender:
    return Contender(job.created_ms, job.est_device_ms, job.left_device_ms)


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(WALKS))
async def test_no_walk_leaves_the_table_or_ends_a_job_twice(redis: Redis, seed: int) -> None:
    walk = Walk(seed, Cell(redis))
    for _ in range(OPERATIONS):
        await walk.step()
    assert {State.COMPLETED, State.FAILED, State.CANCELLED} <= set(walk.ended)
    assert walk.preempted > 0


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(WALKS // 2))
async def test_on_no_walk_is_a_clip_paid_twice_or_not_at_all(redis: Redis, seed: int) -> None:
    cell, price, bought = Cell(redis), 7, 7 * OPERATIONS
    ledger = RedisLedger(cell)
    await ledger.grant("ann", ref="pay_1", amount=bought, kind=Kind.PURCHASE)
    walk = Walk(seed, cell, Wish(ServiceTier.PRIORITY), price)
    for _ in range(OPERATIONS):
        await walk.step()
        active = sum(state not in TERMINAL for state in walk.known.values())
        balance = await ledger.balance("ann")
        assert balance.held == price * active
        spent = bought - balance.spendable - balance.held
        assert spent == price * walk.ended[State.COMPLETED]
    assert (await verify(cell)).differences == []
    assert {State.COMPLETED, State.FAILED, State.CANCELLED} <= set(walk.ended)
