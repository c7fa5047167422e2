"""What tests of the autoscaler's decisions share: decisions as whoever decides writes them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autoscale.values import Budget, ClassSample, Decision, Demand, Sample, Scaling

SAMPLE = Sample(
    at_s=1000.0,
    classes={
        "burst": ClassSample(queued_jobs=2, queued_s=30.0, oldest_wait_s=4.0),
        "standard": ClassSample(queued_jobs=5, queued_s=90.0, in_flight_jobs=1, in_flight_s=12.5),
    },
    busy=1,
    cold_start_s=6.0,
)
DEMAND = Demand(
    need=3,
    by="drain",
    critical="standard",
    load=2.4,
    work_s=132.5,
    jobs=8,
    cold_start_s=6.0,
    fast=4.0,
    slow=1.0,
    forecast=4.5,
    spike=True,
)
SCALING = Scaling(max_replicas=4, buffer=1)
BUDGET = Budget(cpus=8.0)


def decision(
    pool: str = "demo-wan",
    *,
    scaling: Scaling = SCALING,
    budget: Budget = BUDGET,
    **changes: Any,
) -> dict[str, Any]:
    """One decision: from 1 to 4 replicas, for what waits."""
    fields: dict[str, Any] = {
        "target": 4,
        "before": 1,
        "ready": 1,
        "wanted": 4,
        "bound": "need",
        "why": "132.5 GPU-seconds in 8 jobs, to begin in time of class standard",
        "demand": DEMAND,
        "sample": SAMPLE,
        "sample_age_s": 0.5,
        **changes,
    }
    return {
        **asdict(Decision(pool=pool, **fields)),
        "scaling": asdict(scaling),
        "objectives_s": {"burst": 30.0, "standard": 180.0},
        "budget": asdict(budget),
    }
