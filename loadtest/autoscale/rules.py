"""Rules for the number of replicas: ours, and what others do, emulated."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence

from autoscale.policy import decide
from autoscale.values import Budget, Decision, Memory, Pool, Replicas, Sample


class Reelserve:
    """The policy of production."""

    def __init__(self, pools: Sequence[Pool], budget: Budget = Budget()) -> None:  # noqa: B008
        self.pools, self.budget, self.memory = pools, budget, Memory()
        self.decisions: Mapping[str, Decision] = {}

    def __call__(
        self,
        samples: Mapping[str, Sample | None],
        replicas: Mapping[str, Replicas],
        now_s: float,
    ) -> Mapping[str, int]:
        outcome = decide(self.pools, samples, replicas, self.budget, self.memory, now_s)
        self.memory, self.decisions = outcome.memory, outcome.decisions
        return {name: each.target for name, each in outcome.decisions.items()}


class FixedAtMax:
    """As many as there may be, always."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools

    def __call__(
        self,
        samples: Mapping[str, Sample | None],
        replicas: Mapping[str, Replicas],
        now_s: float,
    ) -> Mapping[str, int]:
        return {pool.name: pool.scaling.max_replicas for pool in self.pools}


class _Alone(ABC):
    """A rule for one pool at a time."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools
        self.seen: dict[str, deque[tuple[float, int]]] = {pool.name: deque() for pool in pools}

    def __call__(
        self,
        samples: Mapping[str, Sample | None],
        replicas: Mapping[str, Replicas],
        now_s: float,
    ) -> Mapping[str, int]:
        targets = {}
        for pool in self.pools:
            sample, have = samples[pool.name], replicas[pool.name]
            n = have.target if sample is None else self.want(pool, sample, have, now_s)
            scaling = pool.scaling
            targets[pool.name] = max(scaling.min_replicas, min(scaling.max_replicas, n))
        return targets

    @abstractmethod
    def want(self, pool: Pool, sample: Sample, have: Replicas, now_s: float) -> int:
        """How many replicas it should have, whatever its bounds."""


class QueueLength(_Alone):
    """One replica for so many queued jobs, as KEDA on the length of a list through the HPA: down
    only to the highest of the last five minutes (its ``stabilizationWindowSeconds`` of 300)."""

    PER_REPLICA = 2
    WINDOW_S = 300.0

    def want(self, pool: Pool, sample: Sample, have: Replicas, now_s: float) -> int:
        queued = sum(each.queued_jobs for each in sample.classes.values())
        seen = self.seen[pool.name]
        seen.append((now_s, math.ceil(queued / self.PER_REPLICA)))
        while seen[0][0] < now_s - self.WINDOW_S:
            seen.popleft()
        now = seen[-1][1]
        return now if now > have.target else min(have.target, max(n for _, n in seen))


class Concurrency(_Alone):
    """One replica for each job there is, on average over a minute; or over six seconds where that
    is twice what is there, and then no fewer for a minute. As Knative's pod autoscaler, whose
    defaults these are; its target of 70% utilization is left out, since a replica runs one job."""

    STABLE_S, PANIC_S, PANIC = 60.0, 6.0, 2.0

    def __init__(self, pools: Sequence[Pool]) -> None:
        super().__init__(pools)
        self.panic: dict[str, tuple[float, int]] = {}

    def want(self, pool: Pool, sample: Sample, have: Replicas, now_s: float) -> int:
        seen = self.seen[pool.name]
        seen.append((now_s, sample.jobs))
        while seen[0][0] < now_s - self.STABLE_S:
            seen.popleft()
        stable, fast = (
            math.ceil(sum(lately) / len(lately))
            for lately in (
                [jobs for _, jobs in seen],
                [jobs for at_s, jobs in seen if at_s >= now_s - self.PANIC_S],
            )
        )
        since_s, highest = self.panic.get(pool.name, (-math.inf, 0))
        if fast >= self.PANIC * max(1, have.ready):
            since_s = now_s
        if now_s - since_s < self.STABLE_S:
            highest = max(highest, fast, have.target)
            self.panic[pool.name] = (since_s, highest)
            return highest
        self.panic.pop(pool.name, None)
        return stable
