"""Every rule on the same arrivals, several times over, and what came of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from autoscale.values import Pool, Scaling
from loadtest.autoscale.cluster import Cluster, Job, Rule, Setup, SimulatedPool
from loadtest.autoscale.rules import Concurrency, FixedAtMax, QueueLength, Reelserve
from loadtest.autoscale.work import LOADS, OBJECTIVES_S, SECONDS, cold_start
from loadtest.autoscale.work import jobs as arrivals

RULES: Mapping[str, Callable[[Sequence[Pool]], Rule]] = {
    "reelserve": Reelserve,
    "reelserve_buffer_1": lambda pools: Reelserve([_with_buffer(pool) for pool in pools]),
    "fixed_max": FixedAtMax,
    "queue_length": QueueLength,
    "concurrency": Concurrency,
}
REPLICAS_MAX = 48
DRAIN_S = 900.0
"""What came is done by so long after the last job, or counts as not begun."""


def _with_buffer(pool: Pool) -> Pool:
    return replace(pool, scaling=replace(pool.scaling, buffer=1))


def run(load: str, rule: str, seed: int, seconds: float = SECONDS) -> dict[str, float]:
    """Figures of one run, whose pool begins with nothing."""
    pool = Pool("pool", Scaling(max_replicas=REPLICAS_MAX), OBJECTIVES_S, gpus=1.0)
    stream = arrivals(load, seed, seconds)
    simulated = SimulatedPool(pool, Setup(cold_start(seed)), stream, 0)
    Cluster({"pool": simulated}, RULES[rule]([pool])).run(seconds + DRAIN_S)
    return figures(stream, simulated)


def figures(stream: Sequence[Job], pool: SimulatedPool) -> dict[str, float]:
    """Of one run: how much began within its objective, at which price, and how restlessly."""
    begun = {
        name: [
            job.first_step_s - job.created_s <= objective_s
            for job in stream
            if job.service_class == name
        ]
        for name, objective_s in OBJECTIVES_S.items()
    }
    hours = len(pool.targets) / 3600
    return {
        "attained": mean([each for all_ in begun.values() for each in all_] or [True]),
        **{f"attained_{name}": mean(found or [True]) for name, found in begun.items()},
        "replica_s": pool.replica_s,
        "utilization": sum(job.work_s for job in stream) / max(1.0, pool.replica_s),
        "starts_per_h": pool.starts / hours,
        "turns_per_h": turns(pool.targets) / hours,
        "most": float(max(pool.targets)),
    }


def turns(targets: Sequence[int]) -> int:
    """How often a number of replicas went the other way."""
    moves = [now - before for before, now in itertools.pairwise(targets) if now != before]
    return sum((one > 0) != (other > 0) for one, other in itertools.pairwise(moves))


def compare(
    seeds: int,
    seconds: float,
    progress: Callable[[str], None],
    loads: Sequence[str] = tuple(LOADS),
) -> dict[str, Any]:
    """Figures by load and rule, means over the seeds; and Reelserve's against each other rule."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for load in loads:
        found[load] = {}
        for rule in RULES:
            progress(f"{load}, {rule}")
            runs = [run(load, rule, seed, seconds) for seed in range(seeds)]
            found[load][rule] = {
                name: round(mean(each[name] for each in runs), 4) for name in runs[0]
            }
    return {"loads": found, "ratio": {load: _ratio(rules) for load, rules in found.items()}}


def _ratio(rules: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    ours = rules["reelserve"]
    return {
        f"to_{name}": {
            figure: round(ours[figure] / theirs[figure], 3)
            for figure in ("attained", "replica_s", "starts_per_h", "turns_per_h")
            if theirs[figure]
        }
        for name, theirs in rules.items()
        if name != "reelserve"
    }
