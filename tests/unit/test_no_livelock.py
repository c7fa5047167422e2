"""Ten thousand small clusters that preempt all they can: every job ends, no step is done twice.

A pure simulation. Who goes first, which class is owed and whether a run is given up is decided by
production's functions; the rules around them are those of ``serving/jobs/lua/lease.lua``. Every
replica asks at every boundary, which is far more often than a real one. A failure names its seed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from serving.plan.classes import CLASSES, DEFAULT_POLICIES, ServiceClass
from serving.plan.fair import after_lease, class_order
from serving.plan.rank import PREEMPTIONS_MAX, Contender, rank, worth_preempting

SEEDS = 10_000
BLOCKS = 10
QUANTUM_MS = 1000
SHARES = {name: policy.share for name, policy in DEFAULT_POLICIES.items()}
SEATS = {name: seat for seat, name in enumerate(CLASSES)}


@dataclass(eq=False)
class Job:
    index: int
    service_class: ServiceClass
    created_ms: int
    steps: int
    step_ms: int
    switch_ms: int
    """What its checkpoint and its resumption take."""
    seat: int = 0
    done: int = 0
    preempted: int = 0
    leased_ms: int = 0
    done_at_lease: int = 0
    resuming: bool = False
    leaving: bool = False

    def __post_init__(self) -> None:
        self.seat = SEATS[self.service_class]

    @property
    def left_ms(self) -> int:
        return (self.steps - self.done) * self.step_ms

    def contender(self) -> Contender:
        return Contender(self.created_ms, self.steps * self.step_ms, self.left_ms, self.seat)


@dataclass
class Cluster:
    """Replicas with slots, each of which runs a job by itself, on one queue."""

    replicas: int
    slots: int
    now_ms: int = 0
    waiting: list[Job] = field(default_factory=list)
    credits: dict[ServiceClass, float] = field(default_factory=dict)
    boundaries: list[tuple[int, int, Job, int]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.runs: list[list[Job]] = [[] for _ in range(self.replicas)]
        # Who goes to the slot of a run that is to leave.
        self.heirs: dict[Job, Job] = {}

    def run(self, arrivals: list[Job]) -> None:
        """Until every job has ended."""
        todo, ended = len(arrivals), 0
        steps = sum(job.steps for job in arrivals)
        # An event is an arrival, a step, or the resumption after one of a job's few preemptions.
        for _ in range(1 + steps + todo * (1 + PREEMPTIONS_MAX)):
            if ended == todo:
                return
            next_ms = self.boundaries[0][0] if self.boundaries else math.inf
            if arrivals and arrivals[0].created_ms <= next_ms:
                job = arrivals.pop(0)
                self.now_ms = max(self.now_ms, job.created_ms)
                self.waiting.append(job)
            else:
                self.now_ms, _, job, replica = heapq.heappop(self.boundaries)
                ended += self.boundary(job, replica)
            self.ask()
        raise AssertionError(f"{todo - ended} of {todo} jobs go on for ever")

    def boundary(self, job: Job, replica: int) -> bool:
        """A run has resumed, or has done a step; whether it was the last."""
        if job.resuming:
            job.resuming = False
        else:
            job.done += 1
            self.seen["steps"] += 1
        ended = job.done == job.steps
        if ended or job.leaving:
            self.runs[replica].remove(job)
            heir = self.heirs.pop(job, None)
            if heir:
                self.begin(heir, replica)
            if job.leaving and not ended:
                self.requeue(job)
            job.leaving = False
        else:
            self.next_boundary(job, replica)
        return ended

    def requeue(self, job: Job) -> None:
        assert job.done > job.done_at_lease, "it was given a slot in vain"
        job.seat, job.resuming = SEATS[job.service_class], True
        credit = self.credits.get(job.service_class, 0.0)
        if credit < 0:
            self.credits[job.service_class] = min(0.0, credit + job.left_ms)
        self.waiting.append(job)

    def begin(self, job: Job, replica: int) -> None:
        self.runs[replica].append(job)
        self.next_boundary(job, replica)

    def next_boundary(self, job: Job, replica: int) -> None:
        took_ms = job.switch_ms if job.resuming else job.step_ms
        heapq.heappush(self.boundaries, (self.now_ms + took_ms, job.index, job, replica))

    def ask(self) -> None:
        """Every replica leases all it can."""
        for replica, runs in enumerate(self.runs):
            while self.waiting and self.free(replica) > 0:
                job = self.first(class_order(self.credits, self.classes()))
                self.lease(job)
                self.begin(job, replica)
            if self.waiting and not any(run.leaving for run in runs):
                self.swap(replica)
        assert not self.waiting or not any(self.free(replica) for replica in range(self.replicas))

    def free(self, replica: int) -> int:
        return self.slots - len(self.runs[replica])

    def classes(self) -> set[ServiceClass]:
        return {job.service_class for job in self.waiting}

    def first(self, order: Sequence[ServiceClass]) -> Job:
        return min(
            (job for job in self.waiting if job.service_class is order[0]),
            key=lambda job: (rank(job.contender(), self.now_ms), job.index),
        )

    def lease(self, job: Job) -> None:
        if self.credits.get(job.service_class, 0.0) > 0:
            job.seat = 0
        self.credits = after_lease(
            self.credits, self.classes(), job.service_class, job.left_ms, SHARES
        )
        self.waiting.remove(job)
        job.leased_ms, job.done_at_lease = self.now_ms, job.done

    def swap(self, replica: int) -> None:
        may_go = [
            run
            for run in self.runs[replica]
            if not run.resuming
            and self.now_ms - run.leased_ms >= QUANTUM_MS
            and run.preempted < PREEMPTIONS_MAX
        ]
        if not may_go:
            return
        victim = max(may_go, key=lambda run: (rank(run.contender(), self.now_ms), run.index))
        free_ms = min(run.left_ms for runs in self.runs for run in runs if not run.leaving)
        for job in sorted(
            self.waiting, key=lambda job: (rank(job.contender(), self.now_ms), job.index)
        ):
            if worth_preempting(
                job.contender(),
                victim.contender(),
                self.now_ms,
                free_ms=free_ms,
                ran_ms=self.now_ms - victim.leased_ms,
                preemptions=victim.preempted,
                quantum_ms=QUANTUM_MS,
                cost_ms=victim.switch_ms,
            ):
                assert rank(job.contender(), self.now_ms) < rank(victim.contender(), self.now_ms)
                self.seen["by class" if job.seat < victim.seat else "for a deadline"] += 1
                victim.preempted += 1
                victim.leaving = True
                self.lease(job)
                self.heirs[victim] = job
                return


def drawn(draw: random.Random) -> tuple[Cluster, list[Job]]:
    """A few jobs of any class and length within a time in which half of them could be done."""
    cluster = Cluster(replicas=draw.randint(1, 2), slots=draw.randint(1, 2))
    jobs = [
        Job(
            index,
            draw.choice(CLASSES),
            created_ms=0,
            steps=draw.choice((1, 2, 3, 5, 8, 13)),
            step_ms=draw.choice((50, 300, 1200)),
            switch_ms=draw.choice((0, 100, 2000)),
        )
        for index in range(draw.randint(3, 16))
    ]
    span_ms = sum(job.left_ms for job in jobs) // (2 * cluster.replicas * cluster.slots)
    times = sorted(draw.randint(0, span_ms) for _ in jobs)
    return cluster, [replace(job, created_ms=at) for job, at in zip(jobs, times, strict=True)]


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_job_ends_and_no_work_is_done_twice(block: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        cluster, jobs = drawn(random.Random(seed))  # noqa: S311
        try:
            cluster.run(list(jobs))
            assert cluster.seen["steps"] == sum(job.steps for job in jobs)
            assert all(job.done == job.steps for job in jobs)
            assert max(job.preempted for job in jobs) <= PREEMPTIONS_MAX
            assert not cluster.waiting
            assert not cluster.heirs
            work_ms = sum(job.steps * job.step_ms for job in jobs)
            switches_ms = sum(job.preempted * job.switch_ms for job in jobs)
            assert cluster.now_ms <= jobs[-1].created_ms + work_ms + switches_ms
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        seen += cluster.seen
        seen["preempted twice"] += sum(job.preempted == 2 for job in jobs)
    # Otherwise the thousand clusters have shown nothing.
    assert min(seen["by class"], seen["for a deadline"], seen["preempted twice"]) > 20, seen
