"""What a decision says of itself."""

from __future__ import annotations

from typing import get_args

import pytest

from autoscale.policy import decide
from autoscale.values import Bound, Budget, ClassSample, Decision, Demand, Memory, Replicas
from autoscale.words import why
from tests.pools import pool, sample


@pytest.mark.parametrize("bound", get_args(Bound))
@pytest.mark.parametrize("by", ["drain", "horizon", "sustain", "jobs", "idle"])
def test_every_bound_has_a_sentence(bound: Bound, by: str) -> None:
    asked = Demand(need=3, by=by, critical="burst", work_s=90.0, jobs=4, clamped=True)  # type: ignore[arg-type]
    decision = Decision("wan", 2, 1, 1, 3, bound, "", asked, None, None)
    said = why(pool(buffer=1, min_replicas=1), decision)
    assert len(said) > 10
    assert "None" not in said


def test_the_figures_of_the_decision_are_in_it() -> None:
    seen = sample(1.0, busy=1, burst=ClassSample(4, 60.0, 1, 20.0))
    outcome = decide([pool()], {"wan": seen}, {"wan": Replicas(1, 1)}, Budget(), Memory(), 1.0)
    said = outcome.decisions["wan"].why
    assert "80.0 GPU-seconds in 5 jobs" in said
    assert "class burst" in said
    assert "cold start 60 s (longer than the objective allows)" in said
