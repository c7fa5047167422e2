"""Reelserve itself: the production rank, with the rules of the queue and of the engine around it.

The rules are those of ``serving/jobs/lua/lease.lua`` and ``serving/engine``; the rank and the
preemption are not emulated but called.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence

from loadtest.policies.work import Costs, Job
from serving.plan.rank import ORDERS, PREEMPTIONS_MAX, Contender, rank, worth_preempting

Rank = tuple[int, float]

SLOTS = 8
QUANTUM_MS = 1000.0

HEADS = 32
"""Jobs that a lease looks at, of each order."""


class Queue:
    """The waiting jobs, in the orders of :mod:`serving.plan.rank` as Redis's sorted sets are."""

    def __init__(self) -> None:
        self._orders: list[list[tuple[float, int, Job]]] = [[] for _ in ORDERS]
        self._contenders: dict[Job, Contender] = {}

    def add(self, job: Job, contender: Contender) -> None:
        self._contenders[job] = contender
        for order, places in zip(ORDERS, self._orders, strict=True):
            bisect.insort(places, (order.score(contender), job.index, job))

    def remove(self, job: Job) -> None:
        contender = self._contenders.pop(job)
        for order, places in zip(ORDERS, self._orders, strict=True):
            del places[bisect.bisect_left(places, (order.score(contender), job.index))]

    def heads(self, now_ms: float) -> list[tuple[Rank, Job, Contender]]:
        """The first few of each order, by rank."""
        seen: dict[Job, Contender] = {}
        for places in self._orders:
            for _, _, job in places[:HEADS]:
                seen[job] = self._contenders[job]
        ranked = ((rank(contender, now_ms), job, contender) for job, contender in seen.items())
        return sorted(ranked, key=lambda entry: (entry[0], entry[1].index))


class Reelserve:
    """One replica with ``slots`` places on one queue.

    A free place takes the first job by rank that would run at once: it can ride along with the
    run that leads, or ranks before it. A full replica gives up a run where
    :func:`worth_preempting` says so; the victim encodes its prompt again when it returns. At
    each boundary those who join do so first; then the run of least rank leads, and runs of its
    shape ride along.
    """

    def __init__(self, costs: Costs, slots: int = SLOTS) -> None:
        self.costs = costs
        self.slots = slots
        self.queue = Queue()
        self.preemptions: dict[Job, int] = {}
        self._leased_s: dict[Job, float] = {}

    def contender(self, job: Job) -> Contender:
        """As the engine has it: work left is what is left of the steps."""
        total_ms = 1e3 * self.costs.solo_s(job.kind, job.steps)
        return Contender(1e3 * job.created_s, total_ms, total_ms * (1 - job.step / job.steps))

    def arrive(self, job: Job) -> None:
        self.queue.add(job, self.contender(job))

    def choose(self, now_s: float) -> Sequence[Job]:
        for _ in self.lease(now_s):
            pass
        runs = self._by_rank(now_s)
        for job in runs:
            if not job.begun:
                return [job]
        if not runs:
            return []
        kind = runs[0].kind
        return [job for job in runs if job.kind is kind][: kind.jobs_max]

    def _by_rank(self, now_s: float) -> list[Job]:
        now_ms = 1e3 * now_s
        return sorted(
            self._leased_s, key=lambda job: (rank(self.contender(job), now_ms), job.index)
        )

    def lease(self, now_s: float) -> Iterator[Job]:
        """The jobs that get a place now."""
        while job := self._next_lease(now_s):
            self.queue.remove(job)
            self._leased_s[job] = now_s
            yield job

    def _next_lease(self, now_s: float) -> Job | None:
        if not (heads := self.queue.heads(1e3 * now_s)):
            return None
        runs = self._by_rank(now_s)
        if len(runs) < self.slots:
            return next(
                (job for score, job, _ in heads if self._joins(score, job, runs, now_s)), None
            )
        victim = next((run for run in reversed(runs) if self._may_lose(run, now_s)), None)
        if victim is None:
            return None
        others = [run for run in runs if run is not victim]
        for score, job, contender in heads:
            worth = self._worth(contender, victim, runs, now_s)
            if worth and self._joins(score, job, others, now_s):
                self._preempt(victim)
                return job
        return None

    def _joins(self, score: Rank, job: Job, runs: Sequence[Job], now_s: float) -> bool:
        if not runs:
            return True
        lead = runs[0]
        riders = sum(run.kind is job.kind for run in runs)
        rides = lead.kind is job.kind and riders < job.kind.jobs_max
        return rides or score < rank(self.contender(lead), 1e3 * now_s)

    def _may_lose(self, run: Job, now_s: float) -> bool:
        return (
            1e3 * (now_s - self._leased_s[run]) >= QUANTUM_MS
            and self.preemptions.get(run, 0) < PREEMPTIONS_MAX
        )

    def _worth(self, winner: Contender, victim: Job, runs: Sequence[Job], now_s: float) -> bool:
        return worth_preempting(
            winner,
            self.contender(victim),
            1e3 * now_s,
            free_ms=min(self.contender(run).remaining_ms for run in runs),
            ran_ms=1e3 * (now_s - self._leased_s[victim]),
            preemptions=self.preemptions.get(victim, 0),
            quantum_ms=QUANTUM_MS,
            cost_ms=1e3 * self.costs.encode_s[victim.kind.name],
        )

    def _preempt(self, victim: Job) -> None:
        del self._leased_s[victim]
        self.preemptions[victim] = self.preemptions.get(victim, 0) + 1
        victim.begun = False
        self.queue.add(victim, self.contender(victim))

    def wake_s(self, now_s: float) -> float:
        return math.inf

    def advanced(self, jobs: Sequence[Job], now_s: float) -> Sequence[Job]:
        ended = [job for job in jobs if job.step == job.steps]
        for job in ended:
            del self._leased_s[job]
        return ended
