"""The simulator of scheduling policies: its arithmetic, and what each policy is known to do."""

from __future__ import annotations

import math
import re
from importlib.resources import files
from typing import Any

import pytest

from loadtest.errors import LoadTestError
from loadtest.policies import reelserve
from loadtest.policies.compare import POLICIES, compare, simulated
from loadtest.policies.executor import Policy, Replica, simulate
from loadtest.policies.peers import Fifo, ServeBatch, Sglang, Triton, VllmOmni
from loadtest.policies.reelserve import Reelserve
from loadtest.policies.work import KINDS, LONG, MID, SMALL, Costs, Job, Kind, arrivals
from serving.plan.rank import AGING, LATE_UNTIL, PREEMPTIONS_MAX

# Round numbers: a small job of 40 steps takes 1 + 40 s alone.
COSTS = Costs(
    {"small": 1.0, "mid": 1.0, "long": 1.0},
    {
        "small": {2: 1.0, 4: 1.25, 8: 1.5, 16: 2.0},
        "mid": {2: 4.0, 4: 7.0},
        "long": {2: 80.0},
    },
)


def job(index: int, kind: Kind, created_s: float, steps: int = 40) -> Job:
    return Job(index, kind, steps, created_s)


def run(policy: Policy, *jobs: Job) -> list[float]:
    """When each job was done."""
    simulate(policy, Replica(COSTS), jobs)
    return [each.done_s for each in jobs]


def test_fifo_is_lindleys_recursion() -> None:
    stream = arrivals(COSTS, 0.8, 300, seed=3)
    simulate(Fifo(), Replica(COSTS), stream)
    free_s = 0.0
    for each in stream:
        free_s = max(free_s, each.created_s) + COSTS.solo_s(each.kind, each.steps)
        assert each.done_s == pytest.approx(free_s)


def test_fifo_waits_as_long_as_queueing_theory_says() -> None:
    # Pollaczek and Khinchine: load x E[S^2] / (2 x E[S] x (1 - load)).
    load = 0.5
    runs = [simulated(Fifo(), COSTS, load, 4000, seed)[0] for seed in range(4)]
    waits = [
        each.done_s - each.created_s - COSTS.solo_s(each.kind, each.steps)
        for stream in runs
        for each in stream
    ]
    sizes = [(kind.share / 2, COSTS.solo_s(kind, steps)) for kind in KINDS for steps in (40, 50)]
    first, second = (sum(share * size**n for share, size in sizes) for n in (1, 2))
    expected_s = load * second / (2 * first * (1 - load))
    assert sum(waits) / len(waits) == pytest.approx(expected_s, rel=0.1)


@pytest.mark.parametrize("name", POLICIES)
def test_every_job_is_done_once_and_never_sooner_than_alone(name: str) -> None:
    steps: dict[Job, int] = {}

    class Counted(Replica):
        def advance(self, jobs: object) -> float:
            chosen = list(jobs)  # type: ignore[call-overload]
            assert len({each.kind for each in chosen}) == 1
            if chosen[0].begun:
                assert len(chosen) <= chosen[0].kind.jobs_max
                for each in chosen:
                    steps[each] = steps.get(each, 0) + 1
            else:
                assert len(chosen) == 1
            return super().advance(chosen)

    stream = arrivals(COSTS, 0.9, 200, seed=5)
    end_s = simulate(POLICIES[name](COSTS), replica := Counted(COSTS), stream)
    assert replica.busy_s <= end_s
    for each in stream:
        assert steps[each] == each.steps
        assert (
            each.created_s + COSTS.solo_s(each.kind, each.steps) <= each.done_s + 1e-6 <= end_s + 1
        )


@pytest.mark.parametrize("name", POLICIES)
def test_a_seed_is_one_outcome(name: str) -> None:
    first, again, other = (
        [each.done_s for each in simulated(POLICIES[name](COSTS), COSTS, 0.8, 150, seed)[0]]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_arrivals_offer_the_load_and_the_mix_they_are_asked_for() -> None:
    stream = arrivals(COSTS, 0.8, 20_000, seed=0)
    offered_s = sum(COSTS.solo_s(each.kind, each.steps) for each in stream)
    assert offered_s / stream[-1].created_s == pytest.approx(0.8, rel=0.05)
    for kind in KINDS:
        assert sum(each.kind is kind for each in stream) / 20_000 == pytest.approx(
            kind.share, rel=0.1
        )


# What each peer is known for.


def test_a_batched_call_ends_for_all_when_its_longest_member_ends() -> None:
    # Both wait while a long job runs; then they share 40 steps, and one goes on for 10 alone.
    long_s = 1 + 40 * 80
    for policy in (ServeBatch(), Triton()):
        done = run(policy, job(0, LONG, 0.0), job(1, SMALL, 1.0, 40), job(2, SMALL, 2.0, 50))
        assert done[1] == done[2] == pytest.approx(done[0] + 2 + 40 * 1.25 + 10)
        assert done[0] == pytest.approx(long_s, abs=0.02)


def test_a_serve_batch_waits_for_more_and_takes_one_shape() -> None:
    first, other, rider = job(0, SMALL, 0.0), job(1, MID, 0.001), job(2, SMALL, 0.005)
    done = run(ServeBatch(), first, other, rider)
    assert done[0] == done[2] == pytest.approx(0.01 + 2 + 40 * 1.25)
    assert done[1] > done[0]


def test_another_shape_ends_a_triton_batch() -> None:
    blocker = job(0, LONG, 0.0)
    waiting = [job(1, SMALL, 1.0), job(2, MID, 2.0), job(3, SMALL, 3.0)]
    done = run(Triton(), blocker, *waiting)
    assert len(set(done)) == 4
    assert done == sorted(done)


def test_triton_sends_the_largest_preferred_size_that_is_there() -> None:
    blocker = job(0, LONG, 0.0)
    done = run(Triton(), blocker, *(job(1 + n, SMALL, 1.0 + n) for n in range(6)))
    assert len(set(done[1:5])) == 1
    assert done[5] == done[6] > done[4]


def test_sglang_batches_only_equal_numbers_of_steps_from_anywhere_in_its_queue() -> None:
    blocker = job(0, LONG, 0.0)
    done = run(
        Sglang(), blocker, job(1, SMALL, 1.0, 40), job(2, SMALL, 2.0, 50), job(3, SMALL, 3.0, 40)
    )
    assert done[1] == done[3] < done[2]


def test_a_head_of_another_shape_blocks_vllm_omnis_queue() -> None:
    # The second small job could ride along with the first, but a mid one stands before it.
    done = run(VllmOmni(), job(0, SMALL, 0.0), job(1, MID, 0.5), job(2, SMALL, 1.0))
    assert done[0] == pytest.approx(41)
    assert done[2] > done[1] > done[0]


def test_vllm_omni_lets_a_request_join_between_steps() -> None:
    done = run(VllmOmni(), job(0, SMALL, 0.0), job(1, SMALL, 10.5))
    # Ten steps alone, an encoding, 30 steps for two; then ten steps alone.
    assert done == pytest.approx([1 + 10 + 1 + 30 * 1.25, 1 + 10 + 1 + 30 * 1.25 + 10])


# Reelserve.


def test_a_small_job_goes_before_a_long_one_that_runs() -> None:
    done = run(Reelserve(COSTS), job(0, LONG, 0.0), job(1, SMALL, 100.0))
    # It waits for the step that runs, and for no other.
    assert done[1] <= 100 + 80 + 1 + 40
    assert done[0] == pytest.approx(1 + 40 * 80 + 1 + 40)


def test_jobs_of_a_shape_share_steps_whatever_their_age() -> None:
    policy = Reelserve(COSTS)
    done = run(policy, job(0, SMALL, 0.0, 50), job(1, SMALL, 10.5, 40))
    assert done == pytest.approx([1 + 10 + 1 + 40 * 1.25, 1 + 10 + 1 + 40 * 1.25])


@pytest.mark.parametrize("slots", [1, 2])
def test_few_places_end_in_no_livelock(slots: int) -> None:
    policy = Reelserve(COSTS, slots)
    stream, replica = simulated(policy, COSTS, 0.9, 600, seed=1)
    assert all(math.isfinite(each.done_s) for each in stream)
    assert 0 < max(policy.preemptions.values()) <= PREEMPTIONS_MAX
    # All that a preemption costs is one more encoding.
    encoded_s = len(stream) + sum(policy.preemptions.values())
    stepped_s = sum(each.steps * COSTS.shared_step_s(each.kind, 1) for each in stream)
    assert replica.busy_s <= encoded_s + stepped_s


def test_costs_survive_json_and_anything_else_is_refused() -> None:
    assert Costs.from_json(COSTS.to_json()) == COSTS
    wrongs: list[dict[str, Any]] = [
        {},
        {"encode_s": {}},
        {**COSTS.to_json(), "step_s": {"small": 1}},
    ]
    for wrong in wrongs:
        with pytest.raises(LoadTestError, match="not costs of this mix"):
            Costs.from_json(wrong)


def test_a_comparison_names_every_policy_in_every_figure() -> None:
    told: list[str] = []
    found = compare(COSTS, 0.8, 100, 2, told.append)
    assert len(told) == len(POLICIES)
    for figure in ("slo_attainment", "small_p95_s", "mid_p95_s", "long_p95_s", "mean_s"):
        assert set(found[figure]) == set(POLICIES)
        for policy, (least, most) in found["spread"][figure].items():
            assert least <= found[figure][policy] <= most
    assert found["batching_gain"]["fifo"] == pytest.approx(1, abs=1e-3)
    assert found["ratio"]["to_fifo"]["slo_attainment"]["fifo"] == 1
    assert found["slo_attainment"]["reelserve"] > found["slo_attainment"]["fifo"]


def test_a_lease_looks_at_as_many_heads_as_the_queue_does() -> None:
    lua = (files("serving.jobs") / "lua" / "_choice.lua").read_text()
    found = re.search(r"^local ([\w, ]*\bHEADS\b[\w, ]*) = ([\d, ]+)$", lua, re.MULTILINE)
    assert found
    names, values = (part.split(", ") for part in found.groups())
    assert int(dict(zip(names, values, strict=True))["HEADS"]) == reelserve.HEADS


def test_a_lease_that_looks_at_a_few_heads_finds_whom_a_look_at_all_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Beyond capacity, so that hundreds wait.
    few = [each.done_s for each in simulated(Reelserve(COSTS), COSTS, 1.6, 250, seed=2)[0]]
    monkeypatch.setattr(reelserve, "HEADS", 10**6)
    all_ = [each.done_s for each in simulated(Reelserve(COSTS), COSTS, 1.6, 250, seed=2)[0]]
    assert few == all_


def test_a_job_among_ever_more_smaller_ones_is_done_in_bounded_time() -> None:
    # Twice as many small jobs as even full batches can do, and one that is bigger.
    mid = job(0, MID, 0.0, steps=4)
    bound_s = (LATE_UNTIL + 1 / AGING) * COSTS.solo_s(MID, mid.steps)
    small = [job(1 + n, SMALL, float(n), steps=4) for n in range(int(1.3 * bound_s))]
    simulate(Reelserve(COSTS), Replica(COSTS), [mid, *small])
    passed = [each for each in small if each.done_s < mid.done_s]
    assert len(passed) > 100
    assert max(each.created_s for each in passed) < bound_s
    assert sum(each.created_s < mid.done_s < each.done_s for each in small) > 100
