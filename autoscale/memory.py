"""What a new sample, and what became of the last decision, add to the policy's memory."""

from __future__ import annotations

import math
from dataclasses import fields, replace

from autoscale.flow import FAST_S, SLOW_S, since_lull
from autoscale.values import Arrival, ClassSample, Drained, PoolMemory, Replicas, Sample

LATE_S = 5.0
"""Samples may be read out of order, by a few seconds; one that is older than that is of a clock
that was set back."""
ARRIVALS_EVERY_S = 1.0
COLD_STARTS = 16
RATE_EVERY_S = 5.0
RATE_WINDOW_S = 60.0
RATE_MIN, RATE_MAX = 0.5, 16.0
"""Estimates are of a job alone. A batch does more in a second; a shared device does less."""
NUMBER_MAX = 1e12
"""More GPU-seconds than all devices there are will ever do."""


def usable(sample: Sample) -> bool:
    """Whether each number can be one: neither negative nor beyond all reason, which NaN is too."""
    numbers = [sample.busy, sample.start_failures, sample.start_failure_age_s]
    if sample.cold_start_s is not None:
        numbers.append(sample.cold_start_s)
    for each in sample.classes.values():
        numbers += [getattr(each, field.name) for field in fields(ClassSample)]
    return math.isfinite(sample.at_s) and all(0 <= number <= NUMBER_MAX for number in numbers)


def look(memory: PoolMemory, sample: Sample, replicas: Replicas, now_s: float) -> PoolMemory:
    """Take in a sample; the same one again, or one from before it, adds nothing."""
    before = memory.sample
    if before is not None and before.at_s - LATE_S < sample.at_s <= before.at_s:
        return memory
    memory = replace(memory, sample=sample, changed_s=now_s)
    memory = replace(memory, arrivals=_arrivals(memory, before, sample, now_s))
    memory = replace(memory, jobs=highest_of(memory.jobs, sample.jobs, now_s, FAST_S))
    return _rate(memory, sample, replicas.ready, now_s)


def highest_of(
    window: tuple[tuple[float, float], ...], value: float, now_s: float, seconds: float
) -> tuple[tuple[float, float], ...]:
    """What is left to remember of a window to know its maximum, which comes first."""
    kept = [each for each in window if each[0] >= now_s - seconds and each[1] > value]
    return (*kept, (now_s, value))


def _arrivals(
    memory: PoolMemory, before: Sample | None, sample: Sample, now_s: float
) -> tuple[Arrival, ...]:
    kept = [each for each in memory.arrivals if each.t_s >= now_s - SLOW_S]
    total = dict(kept[-1].classes) if kept else {}
    for name, seen in sample.classes.items():
        work_s, jobs = total.get(name, (0.0, 0.0))
        more_s, more_jobs = _came(before.classes.get(name) if before else None, seen)
        total[name] = (work_s + more_s, jobs + more_jobs)
    if len(kept) > 1 and now_s - kept[-2].t_s < ARRIVALS_EVERY_S:
        kept.pop()
    return since_lull((*kept, Arrival(now_s, total)), now_s)


def _came(before: ClassSample | None, now: ClassSample) -> tuple[float, float]:
    """Work and jobs; nothing when the counters began anew.

    What was parked meanwhile did not come, as no replica would help it. How many jobs that are is
    not known, so they count as large as the others.
    """
    if before is None:
        return 0.0, 0.0
    arrived_s = max(0.0, now.arrived_s - before.arrived_s)
    work_s = max(0.0, arrived_s - max(0.0, now.parked_s - before.parked_s))
    jobs = max(0.0, now.arrived_jobs - before.arrived_jobs)
    return work_s, jobs * (work_s / arrived_s if arrived_s else 1.0)


def _rate(memory: PoolMemory, sample: Sample, ready: int, now_s: float) -> PoolMemory:
    """How fast replicas work, seen while none of them was idle for want of work."""
    full = sample.queued_s > 0 and sample.busy >= ready > 0
    now = Drained(now_s, sample.work_s + sample.parked_s, sample.arrived_s, ready, full)
    then = memory.drained
    if then is None or not (then.full and now.full) or ready != then.ready:
        return replace(memory, drained=now)
    seconds = now_s - then.t_s
    if seconds < RATE_EVERY_S:
        return memory
    done_s = then.work_s + (now.arrived_s - then.arrived_s) - now.work_s
    # What was cancelled looks as if it had been done.
    seen = min(done_s / (seconds * ready), 2 * memory.rate)
    weight = 1 - math.exp(-seconds / RATE_WINDOW_S)
    rate = memory.rate + weight * (seen - memory.rate)
    return replace(memory, drained=now, rate=min(RATE_MAX, max(RATE_MIN, rate)))


def started(memory: PoolMemory, replicas: Replicas, failures: int, now_s: float) -> PoolMemory:
    """Which replicas are starting since when, and how long those took that are ready now."""
    starts = memory.starts
    came = min(len(starts), max(0, replicas.ready - memory.ready))
    took = () if failures else tuple(now_s - asked_s for asked_s in starts[:came])
    starting = max(0, replicas.target - replicas.ready)
    starts = starts[came:][:starting]  # Serve stops the newest
    starts += (now_s,) * (starting - len(starts))
    return replace(
        memory,
        ready=replicas.ready,
        starts=starts,
        cold_starts_s=(*memory.cold_starts_s, *took)[-COLD_STARTS:],
    )
