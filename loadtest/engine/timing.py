"""Figures from repetitions on a machine that others may use.

What is measured and its baseline take turns, so that both meet the same neighbours.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turns(
    baseline: Callable[[], T], measured: Callable[[], T], repeats: int
) -> tuple[list[T], list[T]]:
    """Results of both, after one run of each to warm up that does not count."""
    baseline(), measured()
    pairs = [(baseline(), measured()) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def speed_up(baseline_s: Sequence[float], measured_s: Sequence[float]) -> dict[str, float]:
    """How many times faster, pair by pair: neighbours in time had the same machine."""
    ratios = [slow / fast for slow, fast in zip(baseline_s, measured_s, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
        "baseline_s": round(min(baseline_s), 4),
        "measured_s": round(min(measured_s), 4),
    }


def step_cost(baseline: Sequence[Sequence[float]], measured: Sequence[Sequence[float]]) -> float:
    """Ratio of the seconds per step of repetitions; each repetition lists its steps'."""
    return typical_s(measured) / typical_s(baseline)


def slowdown(baseline: Sequence[Sequence[float]], measured: Sequence[Sequence[float]]) -> float:
    """Share that the steps take longer: the median over pairs of repetitions, for what is smaller
    than the noise of one."""
    pairs = zip(baseline, measured, strict=True)
    ratios = [statistics.fmean(slow) / statistics.fmean(fast) for fast, slow in pairs]
    return statistics.median(ratios) - 1


def typical_s(repetitions: Sequence[Sequence[float]]) -> float:
    """Seconds of a step in the best repetition: a neighbour only ever adds time.

    All its steps count, since solvers and snapshots do not cost the same in each.
    """
    return min(statistics.fmean(steps) for steps in repetitions)
