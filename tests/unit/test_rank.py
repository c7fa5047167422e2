"""Who goes first, and who gives way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.plan.rank import (
    AGING,
    LATE_UNTIL,
    ORDERS,
    PREEMPTIONS_MAX,
    Contender,
    rank,
    worth_preempting,
)

NOW_MS = 1_795_000_000_000
DAY_MS = 86_400_000

totals = st.integers(1, DAY_MS)


@st.composite
def contenders(draw: st.DrawFn) -> Contender:
    """Any job, however old and however far."""
    total_ms = draw(totals)
    age_ms = draw(st.one_of(st.integers(0, 6 * total_ms), st.integers(0, 10 * DAY_MS)))
    return Contender(NOW_MS - age_ms, total_ms, draw(st.integers(1, total_ms)))


def at(total_ms: int, remaining_ms: int, slack_ms: int) -> Contender:
    """A job that can still wait so long and be on time."""
    return Contender(NOW_MS + slack_ms + remaining_ms - 3 * total_ms, total_ms, remaining_ms)


def fresh(total_ms: int, age_ms: int = 0) -> Contender:
    return Contender(NOW_MS - age_ms, total_ms, total_ms)


@given(totals, st.data())
def test_of_two_that_can_be_on_time_less_work_and_less_slack_go_first(
    total_ms: int, data: st.DataObject
) -> None:
    work_ms = data.draw(st.integers(1, total_ms))
    slack_ms = data.draw(st.integers(0, 2 * total_ms))
    first = at(total_ms, work_ms, slack_ms)
    then = at(total_ms, work_ms + data.draw(totals), slack_ms + data.draw(totals))
    assert rank(first, NOW_MS) < rank(then, NOW_MS)


@given(totals, st.data())
def test_of_equal_jobs_on_time_the_older_goes_first(total_ms: int, data: st.DataObject) -> None:
    age_ms = data.draw(st.integers(1, 2 * total_ms))
    younger_ms = data.draw(st.integers(0, age_ms - 1))
    assert rank(fresh(total_ms, age_ms), NOW_MS) < rank(fresh(total_ms, younger_ms), NOW_MS)


def test_a_long_job_that_became_late_lets_one_pass_that_can_be_on_time() -> None:
    late, on_time = fresh(60_000, age_ms=130_000), fresh(80_000)
    assert rank(on_time, NOW_MS) < rank(late, NOW_MS)
    # But not for ever.
    assert rank(fresh(60_000, age_ms=250_000), NOW_MS) < rank(on_time, NOW_MS)


def test_a_small_job_that_became_late_still_goes_before_a_long_one() -> None:
    assert rank(fresh(1_000, age_ms=3_000), NOW_MS) < rank(fresh(60_000), NOW_MS)


@given(contenders(), contenders(), st.integers(0, 10 * DAY_MS))
def test_nobody_waits_for_ever(job: Contender, later: Contender, more_ms: int) -> None:
    # However small: who comes so much later never goes first.
    bound_ms = (LATE_UNTIL + 1 / AGING) * job.total_ms
    later = replace(later, created_ms=job.created_ms + bound_ms + more_ms)
    now_ms = max(NOW_MS, later.created_ms)
    assert rank(job, now_ms) < rank(later, now_ms)


@given(contenders())
def test_work_done_never_lets_a_job_fall_back(job: Contender) -> None:
    ahead = replace(job, remaining_ms=job.remaining_ms / 2)
    assert rank(ahead, NOW_MS) <= rank(job, NOW_MS)


@given(st.lists(contenders(), min_size=2, max_size=30), st.integers(1, DAY_MS))
def test_the_orders_of_the_queue_are_those_of_the_rank_where_they_decide(
    jobs: list[Contender], now_ms: int
) -> None:
    # Jobs that are all old are ranked by their age order, whatever the time.
    by_age = ORDERS[1].score
    old = [replace(job, created_ms=NOW_MS - 20 * DAY_MS - job.total_ms) for job in jobs]
    first = min(old, key=lambda job: rank(job, NOW_MS + now_ms))
    assert by_age(first) == pytest.approx(min(map(by_age, old)), rel=1e-12)


# Preemption. A victim with a minute to go, and a small job that has two seconds to lose.

VICTIM = Contender(NOW_MS - 10_000, 70_000, 60_000)
WINNER = Contender(NOW_MS - 1_000, 1_500, 1_500)


def worth(
    winner: Contender = WINNER,
    victim: Contender = VICTIM,
    *,
    free_ms: float = 60_000,
    ran_ms: float = 10_000,
    preemptions: int = 0,
    quantum_ms: float = 1_000,
    cost_ms: float = 500,
) -> bool:
    return worth_preempting(
        winner,
        victim,
        NOW_MS,
        free_ms=free_ms,
        ran_ms=ran_ms,
        preemptions=preemptions,
        quantum_ms=quantum_ms,
        cost_ms=cost_ms,
    )


def test_a_deadline_that_would_be_lost_is_worth_a_preemption() -> None:
    assert worth()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"preemptions": PREEMPTIONS_MAX}, id="the victim lost its place often enough"),
        pytest.param({"ran_ms": 999}, id="the victim has hardly begun"),
        pytest.param({"free_ms": 1_900}, id="a place comes free in time by itself"),
        pytest.param({"cost_ms": 2_100}, id="switching takes what time there was"),
    ],
)
def test_other_preemptions_are_not(changes: dict[str, Any]) -> None:
    assert not worth(**changes)


def test_a_deadline_that_is_lost_already_is_worth_none() -> None:
    assert not worth(winner=replace(WINNER, created_ms=NOW_MS - 4_000))


def test_a_deadline_is_not_paid_for_with_another() -> None:
    # The victim can be on time only if it goes on.
    assert not worth(victim=Contender(NOW_MS - 149_500, 70_000, 60_000))


@given(contenders(), contenders(), st.integers(0, DAY_MS), st.integers(0, 10_000))
def test_two_jobs_never_take_each_others_place_in_turn(
    one: Contender, other: Contender, free_ms: int, cost_ms: int
) -> None:
    taken = worth(one, other, free_ms=free_ms, cost_ms=cost_ms)
    assert not (taken and worth(other, one, free_ms=free_ms, cost_ms=cost_ms))
