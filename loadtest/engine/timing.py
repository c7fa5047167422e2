"""Figures from repetitions on a machine that others may use.

What is measured and its baseline take turns, so that both meet the same neighbours.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turns(
    baseline: Callable[[], T], measured: Callable[[], T], repeats: int
) -> tuple[list[T], list[T]]:
    """Results of both, after one run of each to warm up that does not count."""
    baseline(), measured()
    results = taking_turns({"baseline": baseline, "measured": measured}, repeats)
    return results["baseline"], results["measured"]


def taking_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Results of each, one a round. They go backwards every other round, so that none is always
    the one after a pause."""
    results: dict[str, list[T]] = {name: [] for name in runs}
    for number in range(rounds):
        turns = list(runs.items())
        for name, run in turns if number % 2 == 0 else reversed(turns):
            results[name].append(run())
    return results


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


def share_of_laden(runs: Iterable[Sequence[tuple[float, bool]]]) -> float:
    """How much longer steps take that carry something, as a share: the median over them of each to
    the two beside it. One percent shows only between neighbours, in one engine: of two that live
    at once, one gets a second malloc arena, whose pages it gives back and takes again at every
    step, and that alone makes long steps 3% longer.
    """
    return statistics.median(
        2 * seconds / (before + after) - 1
        for steps in runs
        for (before, _), (seconds, laden), (after, _) in _threes(steps)
        if laden
    )


def _threes(steps: Sequence[T]) -> Iterable[tuple[T, T, T]]:
    return zip(steps, steps[1:], steps[2:], strict=False)


def typical_s(repetitions: Sequence[Sequence[float]]) -> float:
    """Seconds of a step in the best repetition: a neighbour only ever adds time.

    All its steps count, since solvers and snapshots do not cost the same in each.
    """
    return min(statistics.fmean(steps) for steps in repetitions)
