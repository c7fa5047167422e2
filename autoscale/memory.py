"""What a new sample, and what became of the last decision, add to the policy's memory."""

from __future__ import annotations

import math
from dataclasses import replace

from autoscale.demand import COLD_STARTS, FAST_S, SLOW_S
from autoscale.values import Arrival, Drained, PoolMemory, Replicas, Sample

LATE_S = 5.0
"""Samples may be read out of order, by a few seconds; one that is older than that is of a clock
that was set back."""
RATE_EVERY_S = 5.0
RATE_WINDOW_S = 60.0
RATE_MIN, RATE_MAX = 0.5, 16.0
"""Estimates are of a job alone. A batch does more in a second; a shared device does less."""


def look(memory: PoolMemory, sample: Sample, replicas: Replicas, now_s: float) -> PoolMemory:
    """Take in a sample; the same one again adds nothing."""
    before = memory.sample
    if before is not None and sample.at_s == before.at_s:
        return memory
    if before is not None and before.at_s - LATE_S < sample.at_s < before.at_s:
        return replace(memory, changed_s=now_s)
    memory = replace(memory, sample=sample, changed_s=now_s)
    memory = _arrivals(memory, sample, now_s)
    memory = replace(memory, jobs=highest_of(memory.jobs, sample.jobs, now_s, FAST_S))
    return _rate(memory, sample, replicas.ready, now_s)


def highest_of(
    window: tuple[tuple[float, int], ...], value: int, now_s: float, seconds: float
) -> tuple[tuple[float, int], ...]:
    """What is left to remember of a window to know its maximum, which comes first."""
    kept = [each for each in window if each[0] >= now_s - seconds and each[1] > value]
    return (*kept, (now_s, value))


def _arrivals(memory: PoolMemory, sample: Sample, now_s: float) -> PoolMemory:
    came = Arrival(
        now_s, {name: (each.arrived_s, each.arrived_jobs) for name, each in sample.classes.items()}
    )
    kept = [each for each in memory.arrivals if each.t_s >= now_s - SLOW_S]
    if kept and sum(w for w, _ in kept[-1].classes.values()) > sample.arrived_s:
        kept = []  # the counters began anew
    return replace(memory, arrivals=(*kept, came))


def _rate(memory: PoolMemory, sample: Sample, ready: int, now_s: float) -> PoolMemory:
    """How fast replicas work, seen while none of them was idle for want of work."""
    work_s = sample.work_s + sample.parked_s
    now = Drained(now_s, work_s, sample.arrived_s, ready, sample.queued_s > 0)
    then = memory.drained
    if then is None or ready != then.ready or not (then.queued and now.queued and ready):
        return replace(memory, drained=now)
    seconds = now_s - then.t_s
    if seconds < RATE_EVERY_S:
        return memory
    done_s = then.work_s + (now.arrived_s - then.arrived_s) - work_s
    # What was cancelled looks as if it had been done.
    seen = min(done_s / (seconds * ready), 2 * memory.rate)
    weight = 1 - math.exp(-seconds / RATE_WINDOW_S)
    rate = memory.rate + weight * (seen - memory.rate)
    return replace(memory, drained=now, rate=min(RATE_MAX, max(RATE_MIN, rate)))


def started(memory: PoolMemory, replicas: Replicas, failures: int, now_s: float) -> PoolMemory:
    """See whether what was asked for is there by now, and how long that took."""
    if memory.raised is None:
        return memory
    asked_s, target = memory.raised
    if failures or replicas.target < target:
        return replace(memory, raised=None)
    if replicas.ready < target:
        return memory
    took = (*memory.cold_starts_s, now_s - asked_s)[-COLD_STARTS:]
    return replace(memory, raised=None, cold_starts_s=took)
