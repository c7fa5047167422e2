"""Pools for tests of the autoscaling policy: one told what it sees, and simulated clusters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoscale.policy import decide
from autoscale.values import (
    Budget,
    ClassSample,
    Decision,
    Memory,
    Pool,
    Replicas,
    Sample,
    Scaling,
)
from loadtest.autoscale.cluster import Cluster, Job, Scraper, Setup, SimulatedPool
from loadtest.autoscale.rules import Reelserve

OBJECTIVES_S = {"burst": 30.0, "standard": 180.0, "relaxed": 900.0}


def pool(name: str = "wan", **scaling: Any) -> Pool:
    """A device for each replica; at most 16 of them unless said otherwise."""
    objectives_s = scaling.pop("objectives_s", OBJECTIVES_S)
    price = scaling.pop("price", 1.0)
    return Pool(name, Scaling(**{"max_replicas": 16, **scaling}), objectives_s, 1.0, 1.0, price)


def sample(
    at_s: float, *, busy: int = 0, starts: Mapping[str, Any] | None = None, **classes: Any
) -> Sample:
    """``standard=(3, 90.0)`` are three jobs that wait with 90 s of work; or a ClassSample."""
    return Sample(
        at_s,
        {
            name: classes[name]
            if isinstance(classes.get(name), ClassSample)
            else ClassSample(*classes.get(name, ()))
            for name in OBJECTIVES_S
        },
        busy=busy,
        **(starts or {}),
    )


@dataclass
class Told:
    """A pool that is told what to see, whose replicas are there as soon as they are asked for."""

    pool: Pool
    target: int = 0
    ready: int | None = None
    """None: as many as there should be."""
    now_s: float = 1000.0
    memory: Memory = field(default_factory=Memory)
    budget: Budget = field(default_factory=Budget)
    targets: list[int] = field(default_factory=list)

    def see(
        self, seconds: float, look: Callable[[float], Sample | None] | Sample | None
    ) -> Decision:
        """So many seconds of this, with a decision in each; the last one."""
        for _ in range(max(1, int(seconds))):
            seen = look(self.now_s) if callable(look) else look
            if isinstance(look, Sample):
                seen = replace(look, at_s=self.now_s)
            decision = self.decide(seen)
            self.now_s += 1.0
        return decision

    def decide(self, seen: Sample | None) -> Decision:
        ready = self.target if self.ready is None else min(self.ready, self.target)
        outcome = decide(
            [self.pool],
            {self.pool.name: seen},
            {self.pool.name: Replicas(self.target, ready)},
            self.budget,
            self.memory,
            self.now_s,
        )
        self.memory = outcome.memory
        decision = outcome.decisions[self.pool.name]
        self.target = decision.target
        self.targets.append(decision.target)
        return decision


class Watched(Reelserve):
    """Production's policy, whose decisions are kept."""

    def __init__(self, pools: Sequence[Pool], budget: Budget) -> None:
        super().__init__(pools, budget)
        self.log: list[tuple[float, Mapping[str, Decision]]] = []

    def __call__(
        self,
        samples: Mapping[str, Sample | None],
        replicas: Mapping[str, Replicas],
        now_s: float,
    ) -> Mapping[str, int]:
        targets = super().__call__(samples, replicas, now_s)
        self.log.append((now_s, self.decisions))
        return targets

    def bounds(self, name: str) -> set[str]:
        return {decisions[name].bound for _, decisions in self.log}


def simulated(
    *pools: tuple[Pool, Setup, Sequence[Job]],
    gpus: float | None = None,
    devices: int = 1_000_000,
    targets: Mapping[str, int] | None = None,
    scraper: Scraper | None = None,
) -> tuple[Cluster, Watched]:
    """A cluster under production's policy. ``gpus`` is the budget, ``devices`` what there is."""
    rule = Watched([each for each, _, _ in pools], Budget(gpus=gpus))
    return (
        Cluster(
            {
                each.name: SimulatedPool(
                    each, setup, jobs, (targets or {}).get(each.name, each.scaling.min_replicas)
                )
                for each, setup, jobs in pools
            },
            rule,
            scraper or Scraper(),
            devices,
        ),
        rule,
    )


def jobs(
    count: int,
    at_s: float,
    work_s: float,
    service_class: str = "standard",
    *,
    every_s: float = 0.0,
    user: str = "",
) -> list[Job]:
    """``count`` of them, one after another."""
    return [Job(at_s + n * every_s, work_s, service_class, user) for n in range(count)]


def direction_changes(targets: Sequence[int]) -> int:
    """How often it went the other way."""
    moves = [now - before for before, now in itertools.pairwise(targets) if now != before]
    return sum((one > 0) != (other > 0) for one, other in itertools.pairwise(moves))
