"""A duration as a function of the size of the work: a few shared parameters, and what was measured.

Sizes are tuples of numbers, and work that is at least as large in every one of them takes at least
as long. The parameters carry what was seen to sizes that were not; where a size was seen, its own
figure counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median, median_low

Size = tuple[int, ...]
Features = tuple[float, ...]

SECONDS_MIN = 1e-6
WINDOW = 9
"""Figures kept of one size. A median of nine follows a change after five; four may be wild."""
DOUBT = 0.5
"""How many figures the parameters are worth beside those of a size itself."""
RIDGE = 0.1
"""How many sizes the prior's proportions are worth beside those that were measured."""
EARNED = 0.02
"""What a feature that the prior does without must save, in squared relative error: one size that
would be off by 14% otherwise. Less may be noise, and a square of noise goes far."""


@dataclass
class Cell:
    """What was measured of one size: the latest figures, and when, in folds of its model."""

    seconds: list[float] = field(default_factory=list)
    at: int = 0

    def add(self, seconds: float, at: int) -> None:
        self.seconds = [*self.seconds, seconds][-WINDOW:]
        self.at = at

    @property
    def typical_s(self) -> float:
        """Of an even number of figures the lower middle one: what disturbs a machine delays it."""
        return median_low(self.seconds)

    @property
    def confidence(self) -> float:
        return len(self.seconds) / (len(self.seconds) + DOUBT)


class Curve:
    """One stage's seconds by size. ``prior`` has a coefficient for each of the ``features``."""

    def __init__(self, prior: Sequence[float], features: Callable[[Size], Features]) -> None:
        self._prior = tuple(prior)
        self._features = features
        self._coefficients = self._prior
        self._levels: dict[Size, float] = {}

    def fit(self, cells: Mapping[Size, Cell]) -> None:
        """Take these figures, and no others, for what is known."""
        cells = {size: cells[size] for size in sorted(cells)}  # the same to the last bit everywhere
        points = [(self._features(size), cell) for size, cell in cells.items()]
        if not points:
            self._coefficients, self._levels = self._prior, {}
            return
        # First as much faster or slower as the machine is on the whole, then in what proportions.
        pace = math.exp(
            median(math.log(cell.typical_s / _value(self._prior, x)) for x, cell in points)
        )
        self._coefficients = nonnegative_fit(
            [(x, cell.typical_s, cell.confidence) for x, cell in points],
            [pace * each for each in self._prior],
        )
        own = {
            size: _value(self._coefficients, self._features(size)) ** (1 - cell.confidence)
            * cell.typical_s**cell.confidence
            for size, cell in cells.items()
        }
        self._levels = _in_order(own)

    def seconds(self, size: Size) -> float:
        """Never less than for a smaller size, never more than for a larger one."""
        if size in self._levels:
            return self._levels[size]
        least = max((s for other, s in self._levels.items() if _within(other, size)), default=0.0)
        most = min((s for other, s in self._levels.items() if _within(size, other)), default=None)
        fitted = max(least, _value(self._coefficients, self._features(size)))
        return fitted if most is None else min(most, fitted)


def nonnegative_fit(
    points: Sequence[tuple[Features, float, float]], start: Sequence[float]
) -> tuple[float, ...]:
    """Coefficients, none below zero, of the features, for points of (features, seconds, weight).

    Least squares of the relative error, so that a short step counts as much as a long one and a
    delayed one is off by at most all of itself; with a ridge towards ``start`` for what the points
    do not say. Features come in the order of preference. They are so few that every set of those
    above zero can be tried; the best of these is the solution (Lawson and Hanson, Solving Least
    Squares Problems, 1974, chapter 23).
    """
    count = len(start)
    total = sum(weight for _, _, weight in points)
    norms = [
        math.sqrt(sum(w * (x[j] / y) ** 2 for x, y, w in points) / total) for j in range(count)
    ]
    goal = [s * n for s, n in zip(start, norms, strict=True)]
    matrix = [[RIDGE if i == j else 0.0 for j in range(count)] for i in range(count)]
    vector = [RIDGE * each for each in goal]
    for x, y, weight in points:
        row = [value / y / norm for value, norm in zip(x, norms, strict=True)]
        for i in range(count):
            vector[i] += weight * row[i]
            for j in range(count):
                matrix[i][j] += weight * row[i] * row[j]
    best, best_loss = goal, math.inf
    for left_out in product((False, True), repeat=count):
        kept = [j for j in range(count) if not left_out[j]]
        part = _solve([[matrix[i][j] for j in kept] for i in kept], [vector[i] for i in kept])
        if any(value < 0 for value in part):
            continue
        # Of the quadratic that is minimised, up to a constant.
        loss = -sum(vector[i] * value for i, value in zip(kept, part, strict=True))
        loss += EARNED * sum(goal[i] == 0 for i in kept)
        if loss < best_loss:
            best, best_loss = [0.0] * count, loss
            for i, value in zip(kept, part, strict=True):
                best[i] = value
    return tuple(value / norm for value, norm in zip(best, norms, strict=True))


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """Gauss's elimination, of a positive definite matrix: it needs no pivots."""
    size = len(vector)
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    for i in range(size):
        for below in rows[i + 1 :]:
            factor = below[i] / rows[i][i]
            for j in range(i, size + 1):
                below[j] -= factor * rows[i][j]
    found = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * found[j] for j in range(i + 1, size))
        found[i] = (rows[i][size] - known) / rows[i][i]
    return found


def _value(coefficients: Sequence[float], x: Features) -> float:
    return max(SECONDS_MIN, sum(c * each for c, each in zip(coefficients, x, strict=True)))


def _within(small: Size, large: Size) -> bool:
    return all(a <= b for a, b in zip(small, large, strict=True))


def _in_order(own: Mapping[Size, float]) -> dict[Size, float]:
    """The same figures with their order put right: where a smaller size seems to take longer than
    a larger one, both move half of the way, in logarithms."""
    return {
        size: math.sqrt(
            max(s for other, s in own.items() if _within(other, size))
            * min(s for other, s in own.items() if _within(size, other))
        )
        for size in own
    }
