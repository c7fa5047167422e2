"""What comes in a second, lately and in the long run, and what will."""

from __future__ import annotations

import bisect
import itertools
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
"""So many fewer than usual are a lull. When this was tuned on ``idle_then_spike`` of ``reelserve
bench autoscale``, it saved a fifth of the replica-seconds and made no job late."""
QUARTERS = 4
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


def regular(arrivals: Sequence[Arrival], now_s: float, window_s: float) -> Flow:
    """What came in a second in each of three quarters of the window at least, as far as it was
    watched; nothing while that is less than ``FAST_S``.

    A batch of jobs at once is in two quarters at most, so it is not taken for the first of many.
    """
    inside = _inside(arrivals, now_s, window_s)
    if not inside or now_s - inside[0].t_s < FAST_S - EPSILON:
        return Flow({}, {})
    whole = _between(inside[0], inside[-1], FAST_S / 2)
    mean = sum(whole.work.values())
    if mean <= 0:
        return whole
    quarter_s = (inside[-1].t_s - inside[0].t_s) / QUARTERS
    marks = [_total_at(inside, inside[0].t_s + quarter_s * n) for n in range(QUARTERS + 1)]
    came = sorted(after - before for before, after in itertools.pairwise(marks))
    factor = max(0.0, came[1]) / quarter_s / mean
    return Flow(
        {name: each * factor for name, each in whole.work.items()},
        {name: each * factor for name, each in whole.jobs.items()},
    )


def _total_at(arrivals: Sequence[Arrival], at_s: float) -> float:
    """Work that had come by then, on the line between the looks before and after."""
    n = bisect.bisect_left(arrivals, at_s, key=lambda each: each.t_s)
    if n == 0 or n == len(arrivals):
        return _total(arrivals[min(n, len(arrivals) - 1)])
    before, after = arrivals[n - 1], arrivals[n]
    part = (at_s - before.t_s) / (after.t_s - before.t_s)
    return _total(before) + part * (_total(after) - _total(before))


def _total(arrival: Arrival) -> float:
    return sum(work_s for work_s, _ in arrival.classes.values())


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
