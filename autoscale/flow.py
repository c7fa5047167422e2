"""What comes in a second, lately and in the long run, and what will."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoscale.values import Arrival

FAST_S = 30.0
"""A spike shows within this."""
SLOW_S = 300.0
"""What comes in the long run is measured over this."""
SPIKE_SIGMA = 3.0
"""So many standard deviations of a Poisson process more than usual are a spike and not noise."""
SPIKE_RATIO = 1.5
LULL_SIGMA = 2.5
"""So many fewer than usual are a lull."""
TREND_MAX = 2.0
EPSILON = 1e-9


@dataclass(frozen=True)
class Flow:
    """What comes in a second: work in GPU-seconds and jobs, by class."""

    work: Mapping[str, float]
    jobs: Mapping[str, float]


def flow(arrivals: Sequence[Arrival], now_s: float, window_s: float) -> Flow:
    """What came in a second of the window, as far as it was watched; nothing before the second
    look."""
    inside = _inside(arrivals, now_s, window_s)
    if len(inside) < 2:
        return Flow({}, {})
    return _between(inside[0], inside[-1], FAST_S / 2)


def is_spike(fast: Flow, slow: Flow) -> bool:
    """Whether more jobs came lately than chance explains, and clearly more work."""
    came, usual = (FAST_S * sum(each.jobs.values()) for each in (fast, slow))
    return came - usual > SPIKE_SIGMA * math.sqrt(usual) + 1 and sum(
        fast.work.values()
    ) > SPIKE_RATIO * sum(slow.work.values())


def is_lull(fast: Flow, slow: Flow) -> bool:
    """Whether fewer jobs came lately than chance explains: then what was usual is no more."""
    came, usual = (FAST_S * sum(each.jobs.values()) for each in (fast, slow))
    return usual - came > LULL_SIGMA * math.sqrt(usual)


def forecast(arrivals: Sequence[Arrival], now_s: float, horizon_s: float) -> Flow:
    """What will come in a second, on average until ``horizon_s`` from now: the fast window's flow
    with its trend, at least nothing and at most ``TREND_MAX`` times the flow."""
    inside = _inside(arrivals, now_s, FAST_S)
    whole = flow(arrivals, now_s, FAST_S)
    now = sum(whole.work.values())
    if len(inside) < 3 or now <= 0:
        return whole
    middle_s = (inside[0].t_s + inside[-1].t_s) / 2
    middle = min(inside[1:-1], key=lambda each: abs(each.t_s - middle_s))
    early, late = _between(inside[0], middle, 1.0), _between(middle, inside[-1], 1.0)
    rise = sum(late.work.values()) - sum(early.work.values())
    slope = rise / max(inside[-1].t_s - middle_s, 1.0)
    factor = min(TREND_MAX, max(0.0, (now + slope * horizon_s / 2) / now))
    return Flow(
        {name: each * factor for name, each in whole.work.items()},
        {name: each * factor for name, each in whole.jobs.items()},
    )


def since_lull(arrivals: tuple[Arrival, ...], now_s: float) -> tuple[Arrival, ...]:
    """Without what was before a lull. The long run would remember a spike for ``SLOW_S``."""
    if is_lull(flow(arrivals, now_s, FAST_S), flow(arrivals, now_s, SLOW_S)):
        return tuple(_inside(arrivals, now_s, FAST_S))
    return arrivals


def _inside(arrivals: Sequence[Arrival], now_s: float, window_s: float) -> list[Arrival]:
    return [each for each in arrivals if each.t_s >= now_s - window_s - EPSILON]


def _between(first: Arrival, last: Arrival, seconds_min: float) -> Flow:
    seconds = max(last.t_s - first.t_s, seconds_min)
    work, jobs = {}, {}
    for name, (work_s, count) in last.classes.items():
        work_before, jobs_before = first.classes.get(name, (work_s, count))
        work[name] = max(0.0, work_s - work_before) / seconds
        jobs[name] = max(0.0, count - jobs_before) / seconds
    return Flow(work, jobs)
