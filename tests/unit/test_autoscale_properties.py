"""What holds of the autoscaling policy whatever it is told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.policy import decide
from autoscale.values import (
    Budget,
    ClassSample,
    Decision,
    Memory,
    Outcome,
    Pool,
    Replicas,
    Sample,
    Scaling,
)
from loadtest.autoscale.cluster import Setup
from loadtest.autoscale.work import cold_start
from loadtest.autoscale.work import jobs as arrivals
from tests.pools import OBJECTIVES_S, Told, direction_changes, pool, sample, simulated

NAMES = ("a", "b", "c")
TICKS = 12
many = settings(deadline=None, max_examples=60)

Step = tuple[list[Pool], Mapping[str, Sample | None], Mapping[str, Replicas], Outcome, float]
"""Pools, what was seen of them, what they had, what was decided, and when."""

amounts = st.floats(0, 5000)
counts = st.integers(0, 200)


@st.composite
def class_samples(draw: st.DrawFn) -> ClassSample:
    return ClassSample(
        queued_jobs=draw(counts),
        queued_s=draw(amounts),
        in_flight_jobs=draw(st.integers(0, 40)),
        in_flight_s=draw(amounts),
        parked_s=draw(amounts),
        oldest_wait_s=draw(st.floats(0, 2000)),
        arrived_jobs=draw(st.floats(0, 1e5)),
        arrived_s=draw(st.floats(0, 1e6)),
    )


@st.composite
def samples(draw: st.DrawFn, failures: bool = True) -> Sample:
    return Sample(
        at_s=draw(st.floats(0, 1e9)),
        classes={name: draw(class_samples()) for name in OBJECTIVES_S},
        busy=draw(st.integers(0, 40)),
        cold_start_s=draw(st.none() | st.floats(0, 1000)),
        start_failures=draw(st.integers(0, 6)) if failures else 0,
        start_failure_age_s=draw(st.floats(0, 1000)),
    )


@st.composite
def pools(draw: st.DrawFn) -> list[Pool]:
    found = []
    for name in NAMES[: draw(st.integers(1, 3))]:
        least = draw(st.integers(0, 4))
        scaling = Scaling(
            min_replicas=least,
            max_replicas=draw(st.integers(max(1, least), 40)),
            buffer=draw(st.integers(0, 3)),
            keep_alive_s=draw(st.sampled_from([0.0, 3.0, 60.0])),
            scaling_delay_s=draw(st.sampled_from([0.0, 0.0, 5.0])),
            cold_start_s=draw(st.sampled_from([1.0, 30.0, 600.0])),
        )
        gpus, price = draw(st.sampled_from([0.5, 1.0, 4.0])), draw(st.floats(0, 100))
        found.append(Pool(name, scaling, OBJECTIVES_S, gpus, 1.0, price))
    return found


@st.composite
def walks(draw: st.DrawFn, failures: bool = True, lost: bool = True) -> list[Step]:
    """What was decided while a cluster was told anything; Serve does as it is told, in its time."""
    each, memory, now_s = draw(pools()), Memory(), 100.0
    targets = {one.name: draw(st.integers(0, 40)) for one in each}
    seen_at = st.none() | samples(failures) if lost else samples(failures)
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, TICKS))):
        now_s += draw(st.sampled_from([0.1, 1.0, 1.0, 10.0, 100.0]))
        seen = {one.name: draw(seen_at) for one in each}
        replicas = {
            name: Replicas(target, draw(st.integers(0, target))) for name, target in targets.items()
        }
        outcome = decide(each, seen, replicas, Budget(), memory, now_s)
        steps.append((each, seen, replicas, outcome, now_s))
        memory = outcome.memory
        targets = {name: one.target for name, one in outcome.decisions.items()}
    return steps


def _failing(decision: Decision) -> bool:
    return decision.sample is not None and decision.sample.start_failures > 0


@many
@given(walks())
def test_within_the_operators_bounds(
    steps: list[Step],
) -> None:
    for each, _, _, outcome, _ in steps:
        for one in each:
            decision = outcome.decisions[one.name]
            assert 0 <= decision.target <= one.scaling.max_replicas
            assert decision.target >= one.scaling.min_replicas or _failing(decision)


@many
@given(walks(), st.floats(0, 30), st.floats(0, 30))
def test_within_the_budget_and_floors_are_kept(
    steps: list[Step],
    gpus: float,
    cpus: float,
) -> None:
    memory = Memory()
    for each, seen, replicas, _, now_s in steps:
        outcome = decide(each, seen, replicas, Budget(gpus, cpus), memory, now_s)
        memory = outcome.memory
        decisions = outcome.decisions
        for bound, takes in ((gpus, "gpus"), (cpus, "cpus")):
            held = sum(
                getattr(one, takes) * decisions[one.name].target
                for one in each
                if decisions[one.name].bound == "hold"
            )
            total = sum(getattr(one, takes) * decisions[one.name].target for one in each)
            # Those of which nothing is known stay as they are, even where that is too much.
            assert total <= max(bound, held) + 1e-6
        floors = [one.scaling.min_replicas for one in each]
        fit = (
            sum(one.gpus * least for one, least in zip(each, floors, strict=True)) <= gpus
            and sum(floors) <= cpus
        )
        if fit and all(decisions[one.name].bound != "hold" for one in each):
            for one in each:
                assert decisions[one.name].target >= one.scaling.min_replicas or _failing(
                    decisions[one.name]
                )


@many
@given(walks())
def test_equal_arguments_give_equal_outcomes_whatever_the_order_of_pools(
    steps: list[Step],
) -> None:
    memories = [Memory(), Memory()]
    for each, seen, replicas, _, now_s in steps:
        one = decide(each, seen, replicas, Budget(9, None), memories[0], now_s)
        other = decide(
            each[::-1],
            dict(reversed(list(seen.items()))),
            dict(reversed(list(replicas.items()))),
            Budget(9, None),
            memories[1],
            now_s,
        )
        assert one == other
        assert one == decide(each, seen, replicas, Budget(9, None), memories[0], now_s)
        memories = [one.memory, other.memory]


more = st.fixed_dictionaries(
    {
        "queued_jobs": st.integers(0, 50),
        "queued_s": amounts,
        "in_flight_jobs": st.integers(0, 20),
        "in_flight_s": amounts,
        "oldest_wait_s": st.floats(0, 500),
    }
)


@many
@given(walks(lost=False), samples(failures=False), st.sampled_from(list(OBJECTIVES_S)), more)
def test_more_work_never_asks_for_fewer_replicas(
    steps: list[Step],
    seen: Sample,
    service_class: str,
    extra: Mapping[str, float],
) -> None:
    each, _, _, outcome, now_s = steps[-1]
    one = each[0]
    before = outcome.decisions[one.name].target
    replicas = {one.name: Replicas(before, before)}
    was = seen.classes[service_class]
    grown: dict[str, Any] = {name: getattr(was, name) + value for name, value in extra.items()}
    is_ = replace(was, **grown)
    fuller = replace(seen, classes={**seen.classes, service_class: is_})
    wanted = [
        decide([one], {one.name: look}, replicas, Budget(), outcome.memory, now_s + 1).decisions[
            one.name
        ]
        for look in (replace(seen, at_s=2e9), replace(fuller, at_s=2e9))
    ]
    # the rate at which replicas work is measured by what is left: take that out of it
    if wanted[0].demand.rate == wanted[1].demand.rate:
        assert wanted[1].wanted >= wanted[0].wanted
        assert wanted[1].target >= wanted[0].target


@many
@given(walks(failures=False), samples(failures=False))
def test_an_unchanging_world_settles(
    steps: list[Step],
    seen: Sample,
) -> None:
    each, _, _, outcome, now_s = steps[-1]
    one = each[0]
    told = Told(
        one, outcome.decisions[one.name].target, now_s=now_s + 10_000, memory=outcome.memory
    )
    seen = replace(seen, cold_start_s=None)
    for _ in range(200):
        told.see(1, seen)
        told.now_s += 9
    assert len(set(told.targets[-50:])) == 1
    assert direction_changes(told.targets) <= 2


HUGE = [0.0, 1e-300, 1.0, 1e9, 1e12]
BAD = [math.nan, math.inf, -1.0, 1e300]


@many
@given(st.data())
def test_no_number_makes_it_raise(data: st.DataObject) -> None:
    values = st.sampled_from(HUGE)
    told = Told(data.draw(pools())[0], 3)
    for _ in range(8):
        classes = {
            name: ClassSample(
                *(  # type: ignore[arg-type]
                    int(data.draw(values)) if field.type == "int" else data.draw(values)
                    for field in fields(ClassSample)
                )
            )
            for name in OBJECTIVES_S
        }
        told.now_s += data.draw(st.sampled_from([1.0, 10.0]))
        told.decide(
            Sample(
                at_s=data.draw(st.sampled_from([0.0, 1.0, 1e300, -1e300])),
                classes=classes,
                busy=int(data.draw(values)),
                cold_start_s=data.draw(st.none() | values),
                start_failures=int(data.draw(values)),
                start_failure_age_s=data.draw(values),
            )
        )
        assert told.pool.scaling.max_replicas >= told.target


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", [each.name for each in fields(ClassSample)])
def test_a_sample_with_an_impossible_number_is_none(name: str, bad: float) -> None:
    told = Told(pool(), 5)
    impossible = replace(ClassSample(), **{name: bad})  # type: ignore[arg-type]
    decision = told.see(100, sample(0.0, standard=impossible))
    assert decision.bound == "hold"
    assert set(told.targets) == {5}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["busy", "cold_start_s", "start_failures", "start_failure_age_s"])
def test_so_is_one_whose_own_numbers_are_impossible(name: str, bad: float) -> None:
    told = Told(pool(), 5)
    assert told.decide(replace(sample(0.0), **{name: bad})).bound == "hold"  # type: ignore[arg-type]
    assert told.decide(replace(sample(math.nan))).bound == "hold"
    assert told.target == 5


@pytest.mark.parametrize("seed", range(5))
def test_steady_noisy_load_changes_its_direction_rarely(seed: int) -> None:
    each = pool(max_replicas=32)
    cluster, _ = simulated(
        (each, Setup(cold_start(seed)), arrivals("steady", seed, 3600.0)), targets={"wan": 5}
    )
    cluster.run(3600)
    targets = cluster.pools["wan"].targets
    assert direction_changes(targets) <= 30
    # and nothing that was just asked for is given back, nor taken back at once
    moves = [n for n in range(1, len(targets)) if targets[n] != targets[n - 1]]
    for one, other in itertools.pairwise(moves):
        up, then_up = targets[one] > targets[one - 1], targets[other] > targets[other - 1]
        if up and not then_up:
            assert other - one >= each.scaling.keep_alive_s


def test_without_a_budget_no_pool_knows_of_another() -> None:
    one, other = pool("one"), pool("other")
    seen = {name: sample(1.0, busy=2, standard=(9, 300.0, 2, 60.0)) for name in ("one", "other")}
    replicas = {name: Replicas(2, 2) for name in seen}
    together = decide([one, other], seen, replicas, Budget(), Memory(), 5.0)
    for each in (one, other):
        alone = decide([each], seen, replicas, Budget(), Memory(), 5.0)
        assert alone.decisions[each.name] == together.decisions[each.name]
        assert alone.memory.pools[each.name] == together.memory.pools[each.name]
