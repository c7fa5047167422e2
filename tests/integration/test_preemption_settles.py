"""Replicas that may preempt at any step, for nothing: still every step is one that was needed.

The scripts are the real ones; the replicas are simulated, a round of theirs is one step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from serving.jobs import (
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
)
from serving.plan.rank import PREEMPTIONS_MAX, Contender, rank
from tests.jobs import submit

LIMITS = JobSettings(quantum_s=0, queue_max=1000)
JOBS = 30
STEP_MS = 1000
LENGTHS = (1, 1, 1, 3, 10, 40)
WIDTHS = (96, 128)


@dataclass
class Run:
    job: Job
    left: int

    @property
    def contender(self) -> Contender:
        return Contender(self.job.created_ms, self.job.est_device_ms, self.left * STEP_MS)


@dataclass
class Replica:
    leases: Leases
    slots: int
    runs: list[Run] = field(default_factory=list)
    steps: int = 0
    preempted: int = 0

    async def step(self) -> None:
        """One step of the run that leads, and of those that ride along."""
        if not self.runs:
            return
        lead = min(self.runs, key=lambda run: rank(run.contender, run.job.created_ms))
        for run in [each for each in self.runs if each.job.spec.shape == lead.job.spec.shape][:2]:
            run.left -= 1
            self.steps += 1
            if run.left:
                await self.leases.heartbeat(
                    run.job,
                    lease_ms=60_000,
                    phase=Phase.DENOISE,
                    step=1,
                    remaining_ms=run.left * STEP_MS,
                )
            else:
                await self.leases.complete(run.job, {})
                self.runs.remove(run)

    async def ask(self) -> bool:
        free = self.slots - len(self.runs)
        await self.leases.announce(host="h", pid=1, slots=self.slots, free=free, age_ms=0)
        room = Room(
            free=free,
            runs=[
                Resident(run.job.id, run.job.fence, run.left * STEP_MS, 0, True)
                for run in self.runs
            ],
            shapes={run.job.spec.shape: Rows(2, 4) for run in self.runs},
        )
        lease = await self.leases.lease(60_000, room)
        if lease is None:
            return False
        if lease.preempts:
            victim = next(run for run in self.runs if run.job.id == lease.preempts[0])
            await self.leases.checkpoint(victim.job, "c", 1, victim.left * STEP_MS)
            await self.leases.give_back(victim.job, holding=True)
            self.runs.remove(victim)
            self.preempted += 1
        self.runs.append(Run(lease.job, lease.job.left_device_ms // STEP_MS))
        return True


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(2))
async def test_replicas_that_preempt_whenever_they_may_get_everything_done(
    cell: Cell, seed: int
) -> None:
    draw = random.Random(seed)  # noqa: S311
    queue = JobQueue(cell, LIMITS)
    replicas = [Replica(Leases(cell, "demo-wan", f"r{n}", LIMITS), slots=1 + n) for n in range(2)]
    jobs: list[Job] = []
    needed, completed = 0, 0
    while completed < JOBS:
        if len(jobs) < JOBS and draw.random() < 0.4:
            length = draw.choice(LENGTHS)
            needed += length
            jobs.append(
                await submit(
                    queue, est_device_ms=length * STEP_MS, render_width=draw.choice(WIDTHS)
                )
            )
        # Whoever asks, asks until there is nothing for it; a swap may make room for another.
        while any([await replica.ask() for replica in replicas]):
            pass
        pool = (await queue.pools(["demo-wan"]))["demo-wan"]
        assert not pool.queued or all(replica.runs for replica in replicas), "none is idle"
        for replica in replicas:
            await replica.step()
        completed = pool.ended.get(State.COMPLETED, 0)
    done = [await queue.get(job.id, user="ann") for job in jobs]
    assert {job.state for job in done} == {State.COMPLETED}
    assert sum(replica.steps for replica in replicas) == needed
    assert sum(replica.preempted for replica in replicas) > 0
    assert max(job.preempted for job in done) <= PREEMPTIONS_MAX
