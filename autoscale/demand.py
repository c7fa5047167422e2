"""How many replicas the work of one pool asks for, were there neither time limits nor a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from autoscale.values import Arrival, Demand, Pool, PoolMemory, Sample

FAST_S = 30.0
"""A spike shows within this."""
SLOW_S = 300.0
"""What comes in the long run is measured over this."""
SPIKE_SIGMA = 3.0
"""So many standard deviations of a Poisson process more than usual are a spike and not noise."""
SPIKE_RATIO = 1.5
CLAMP = 0.25
"""A new replica is counted on for at least this part of an objective. Where the cold start takes
more than the rest, no replica that starts now comes in time, and asking for hundreds would not
help: the buffer has to."""
UTILIZATION = 0.9
"""Of replicas that do just as much as comes: at 1, a queue grows without bound."""
COLD_STARTS = 8
EPSILON = 1e-9


@dataclass(frozen=True)
class Flow:
    """What comes in a second: work and jobs, by class."""

    work: Mapping[str, float]
    jobs: Mapping[str, float]


def demand(
    pool: Pool, sample: Sample, memory: PoolMemory, ready: int, now_s: float, *, spiking: bool
) -> Demand:
    """``spiking``: a spike was seen lately, so that the fast window counts."""
    cold_s = cold_start_s(pool, sample, memory)
    fast, slow = flow(memory.arrivals, now_s, FAST_S), flow(memory.arrivals, now_s, SLOW_S)
    spike = is_spike(fast, slow)
    comes = forecast(memory.arrivals, now_s, cold_s) if spike or spiking else slow
    rate = memory.rate

    need, by, critical, clamped, load = 0, _IDLE, "", False, 0.0
    work_s, coming, jobs = 0.0, 0.0, 0
    for name, objective_s in pool.objectives_s.items():
        seen = sample.classes.get(name)
        if seen is None:
            continue
        # Whatever is of a higher class goes before.
        work_s += seen.queued_s + seen.in_flight_s
        coming += comes.work.get(name, 0.0)
        jobs += seen.queued_jobs + seen.in_flight_jobs
        left_s = max(objective_s - seen.oldest_wait_s, CLAMP * objective_s)
        lead_s = max(left_s - cold_s, CLAMP * objective_s)
        drain = _in_time(work_s / rate, ready, left_s, lead_s)
        later_s = max(0.0, work_s + coming * cold_s - rate * ready * cold_s)
        horizon = _ceil(later_s / (rate * objective_s))
        most = jobs + math.floor(sum(comes.jobs.values()) * cold_s + EPSILON)
        for term, n in (("drain", drain), ("horizon", horizon)):
            if min(n, most) > need:
                need, critical = min(n, most), name
                by = _TERMS["jobs" if n > most else term]
                clamped = left_s - cold_s < CLAMP * objective_s
        load = max(load, min(jobs, work_s / (rate * left_s)))

    arriving = sum(slow.work.values())
    in_system = max([jobs, *(n for _, n in memory.jobs)])
    most = in_system + math.floor(sum(comes.jobs.values()) * cold_s + EPSILON)
    sustain = min(_ceil(arriving / (rate * UTILIZATION)), most)
    if sustain > need:
        need, by, critical = sustain, _TERMS["sustain"], ""
    if need == 0 and sample.jobs > 0:
        need, by = 1, _TERMS["drain"]
    return Demand(
        need=need,
        by=by,
        critical=critical,
        load=max(load, min(arriving / rate, most)),
        work_s=sample.work_s,
        jobs=sample.jobs,
        cold_start_s=cold_s,
        clamped=clamped,
        rate=rate,
        fast=sum(fast.work.values()),
        slow=arriving,
        forecast=sum(comes.work.values()),
        spike=spike,
    )


_Term = Literal["drain", "horizon", "sustain", "jobs", "idle"]
_IDLE: _Term = "idle"
_TERMS: Mapping[str, _Term] = {
    "drain": "drain",
    "horizon": "horizon",
    "sustain": "sustain",
    "jobs": "jobs",
}


def cold_start_s(pool: Pool, sample: Sample, memory: PoolMemory) -> float:
    """From a decision to a replica that leases: as this policy saw it happen, nodes that had to
    come included; else what replicas say of their own start; else what the operator expects."""
    if memory.cold_starts_s:
        ordered = sorted(memory.cold_starts_s)
        return ordered[math.ceil(0.9 * len(ordered)) - 1]
    if sample.cold_start_s is not None:
        return sample.cold_start_s
    return pool.scaling.cold_start_s


def flow(arrivals: Sequence[Arrival], now_s: float, window_s: float) -> Flow:
    """What came in a second of the window, as far as it was watched; nothing before the second
    look."""
    inside = [each for each in arrivals if each.t_s >= now_s - window_s - EPSILON]
    if len(inside) < 2:
        return Flow({}, {})
    return _flow(inside[0], inside[-1], max(inside[-1].t_s - inside[0].t_s, FAST_S / 2))


def _flow(first: Arrival, last: Arrival, seconds: float) -> Flow:
    work, jobs = {}, {}
    for name, (work_s, count) in last.classes.items():
        work_before, jobs_before = first.classes.get(name, (work_s, count))
        work[name] = max(0.0, work_s - work_before) / seconds
        jobs[name] = max(0.0, count - jobs_before) / seconds
    return Flow(work, jobs)


def is_spike(fast: Flow, slow: Flow) -> bool:
    """Whether more jobs came lately than chance explains, and clearly more work."""
    came, usual = (FAST_S * sum(each.jobs.values()) for each in (fast, slow))
    return came - usual > SPIKE_SIGMA * math.sqrt(usual) + 1 and sum(
        fast.work.values()
    ) > SPIKE_RATIO * sum(slow.work.values())


def forecast(arrivals: Sequence[Arrival], now_s: float, horizon_s: float) -> Flow:
    """What will come in a second, on average until ``horizon_s`` from now: the fast window's flow
    and half of its trend, at least nothing and at most twice the flow."""
    whole = flow(arrivals, now_s, FAST_S)
    inside = [each for each in arrivals if each.t_s >= now_s - FAST_S - EPSILON]
    if len(inside) < 3:
        return whole
    middle_s = (inside[0].t_s + inside[-1].t_s) / 2
    middle = min(inside[1:-1], key=lambda each: abs(each.t_s - middle_s))
    early = _flow(inside[0], middle, max(middle.t_s - inside[0].t_s, 1.0))
    late = _flow(middle, inside[-1], max(inside[-1].t_s - middle.t_s, 1.0))
    before, after = sum(early.work.values()), sum(late.work.values())
    now = sum(whole.work.values())
    if now <= 0:
        return whole
    slope = (after - before) / max((inside[-1].t_s - inside[0].t_s) / 2, 1.0)
    factor = min(2.0, max(0.0, (now + slope * horizon_s / 2) / now))
    return Flow(
        {name: each * factor for name, each in whole.work.items()},
        {name: each * factor for name, each in whole.jobs.items()},
    )


def _in_time(work_s: float, ready: int, left_s: float, lead_s: float) -> int:
    """Replicas that do ``work_s`` within ``left_s``, of which those beyond ``ready`` are there for
    ``lead_s`` of it. Replicas that are starting are among the latter, so none is ordered twice."""
    if work_s <= ready * left_s + EPSILON:
        return _ceil(work_s / left_s)
    return ready + _ceil((work_s - ready * left_s) / lead_s)


def _ceil(value: float) -> int:
    return math.ceil(value - EPSILON)
