"""Loads that look like what a cluster for generated media met.

Fitted to figures of Alibaba's trace of such a cluster (cluster-trace-v2026-GenAI, SoCC 2025),
whose records are not used: service times of 23 s at the median, 92 s at p99, a coefficient of
variation of 0.66; loading a base model 23 s at the median, 45 s at p95; requests by bins of 57 s
that peak at 3.3 times the mean and jump by 2.8 times at p99.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from loadtest.autoscale.cluster import Job

SERVICE_P50_S, SERVICE_SIGMA = 23.0, 0.6
COLD_P50_S, COLD_SIGMA = 22.7, 0.42
JUMP = 2.8
BIN_S = 57.0
CLASSES: Mapping[str, float] = {"burst": 0.5, "standard": 0.4, "relaxed": 0.1}
OBJECTIVES_S: Mapping[str, float] = {"burst": 30.0, "standard": 60.0, "relaxed": 900.0}
"""Standard jobs have a third of the time that a catalog gives them by default: with all of it, any
rule here is in time."""
SECONDS = 4320.0
MEAN_S = SERVICE_P50_S * math.exp(SERVICE_SIGMA**2 / 2)

Rate = Callable[[float], float]
"""Replicas' worth of work that comes at a time."""


def cold_start(seed: int) -> Callable[[float], float]:
    """How long starts take, one after another."""
    chance = random.Random(f"cold {seed}")  # noqa: S311
    return lambda now_s: chance.lognormvariate(math.log(COLD_P50_S), COLD_SIGMA)


def steady(seed: int) -> Rate:
    return lambda at_s: 4.0


def bursty(seed: int) -> Rate:
    """Around 2.4, and in one of ten bins 2.8 times as much."""
    chance = random.Random(f"bursty {seed}")  # noqa: S311
    bins = [(JUMP if chance.random() < 0.1 else 1.0) * 2.4 for _ in range(10_000)]
    return lambda at_s: bins[int(at_s / BIN_S)]


def tides(seed: int) -> Rate:
    """Between nothing and 8, over an hour."""
    return lambda at_s: 4.0 - 4.0 * math.cos(2 * math.pi * at_s / 3600)


def idle_then_spike(seed: int) -> Rate:
    """Nothing for 15 minutes, then 10 for three, and so on."""
    return lambda at_s: 10.0 if at_s % 1080 >= 900 else 0.0


def flash_crowd(seed: int) -> Rate:
    """3, and 30 for three minutes of each 36."""
    return lambda at_s: 30.0 if 900 <= at_s % 2160 < 1080 else 3.0


def sparse(seed: int) -> Rate:
    """A job every few minutes."""
    return lambda at_s: 0.12


LOADS: Mapping[str, Callable[[int], Rate]] = {
    "steady": steady,
    "bursty": bursty,
    "tides": tides,
    "idle_then_spike": idle_then_spike,
    "flash_crowd": flash_crowd,
    "sparse": sparse,
}


def jobs(load: str, seed: int, seconds: float = SECONDS) -> list[Job]:
    """What comes, at random with the load's rate."""
    chance = random.Random(f"{load} {seed}")  # noqa: S311
    rate = LOADS[load](seed)
    highest = max(rate(at_s) for at_s in range(int(seconds))) / MEAN_S
    found, at_s = [], 0.0
    while highest and (at_s := at_s + chance.expovariate(highest)) < seconds:
        if chance.random() < rate(at_s) / MEAN_S / highest:
            work_s = chance.lognormvariate(math.log(SERVICE_P50_S), SERVICE_SIGMA)
            service_class = chance.choices(list(CLASSES), list(CLASSES.values()))[0]
            found.append(Job(at_s, work_s, service_class))
    return found
