"""Each knob of the autoscaling policy does what an operator expects of it, and says so."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from autoscale.budget import Ask, share
from autoscale.policy import BACKOFF_S, DOWN_SHARE, MOVE_S, SPIKE_KEEP_S, UP_LEAST
from autoscale.values import Budget, ClassSample, Decision, Sample
from loadtest.autoscale.cluster import Setup
from tests.pools import Told, jobs, pool, sample, simulated

COLD_S = 30.0


def quick(now_s: float) -> float:
    return COLD_S


def waiting(count: int, work_s: float = 60.0, busy: int = 0, **more: float) -> Sample:
    """``count`` standard jobs that wait."""
    return sample(0.0, busy=busy, standard=ClassSample(count, count * work_s, **more))  # type: ignore[arg-type]


def test_buffer_is_beyond_what_the_work_needs() -> None:
    told = Told(pool(buffer=2), 0)
    assert told.see(1, sample(0.0)).target == 2
    need = told.see(1, waiting(6))
    assert need.target == need.demand.need + 2
    assert "a buffer of 2" in need.why


def test_a_buffer_covers_a_cold_start_that_the_objective_does_not_allow() -> None:
    # given starts of 60 s, twice the objective of burst jobs that come one by one
    late = {}
    for buffer in (0, 1):
        work = jobs(20, 120.0, 20.0, "burst", every_s=200.0)
        each = pool(buffer=buffer, max_replicas=4)
        cluster, rule = simulated((each, Setup(lambda now_s: 60.0), work))
        cluster.run(4200)
        late[buffer] = sum(job.first_step_s - job.created_s > 30 for job in work)
        clamped = [seen["wan"] for _, seen in rule.log if seen["wan"].demand.clamped]
        assert all("longer than the objective allows" in decision.why for decision in clamped)
        assert max(cluster.pools["wan"].targets) <= 1 + buffer
    # then none is in time without a buffer, and all are with one
    assert late == {0: 20, 1: 0}


def test_keep_alive_counts_from_when_it_was_last_needed() -> None:
    told = Told(pool(keep_alive_s=90.0, cold_start_s=10.0), 1)
    told.see(200, sample(0.0, busy=1, standard=ClassSample(0, 0.0, 1, 50.0)))
    kept = told.see(90, sample(0.0))
    assert (kept.target, kept.bound) == (1, "keep_alive")
    assert told.see(2, sample(0.0)).target == 0


def test_a_replica_is_kept_for_as_long_as_another_takes_to_start() -> None:
    told = Told(pool(keep_alive_s=0.0, cold_start_s=60.0), 1)
    told.see(100, sample(0.0, busy=1, standard=ClassSample(0, 0.0, 1, 50.0)))
    assert told.see(60, sample(0.0)).target == 1
    assert told.see(2, sample(0.0)).target == 0


def test_scaling_delay_waits_for_a_need_that_lasts() -> None:
    told = Told(pool(scaling_delay_s=20.0), 1)
    told.see(1, sample(0.0))
    for _ in range(5):
        assert told.see(15, waiting(9)).bound == "scaling_delay"
        told.see(1, waiting(1))
    assert set(told.targets) == {1}
    assert told.see(21, waiting(9)).target > 1


def test_min_replicas_are_there_before_anything_is_seen() -> None:
    told = Told(pool(min_replicas=2, scaling_delay_s=60.0), 0)
    assert told.see(1, None).target == 2
    told.target = 0
    assert told.see(1, sample(0.0)).target == 2


def test_a_lower_max_replicas_counts_at_once() -> None:
    told = Told(pool(), 12)
    told.see(5, waiting(50, busy=12))
    told.pool = pool(max_replicas=3)
    lowered = told.see(1, waiting(50, busy=12))
    assert (lowered.target, lowered.bound) == (3, "max_replicas")


def test_to_zero_and_back() -> None:
    work = [*jobs(8, 60.0, 40.0), *jobs(8, 1200.0, 40.0)]
    cluster, _ = simulated((pool(), Setup(quick), work))
    cluster.run(900)
    each = cluster.pools["wan"]
    assert max(each.targets) > 1
    assert (each.target, each.replicas) == (0, [])
    cluster.run(900)
    assert max(each.targets[1200:]) > 1
    assert all(job.first_step_s - job.created_s <= 180 for job in work)
    assert each.target == 0


def test_slew_up_and_down() -> None:
    told = Told(pool(max_replicas=100, keep_alive_s=0.0, cold_start_s=1.0), 0)
    assert told.see(1, waiting(1000)).target == UP_LEAST
    assert told.see(1, waiting(1000)).bound == "slew"
    told.see(MOVE_S, waiting(1000))
    assert told.target == 2 * UP_LEAST
    told.see(100, waiting(1000))
    assert told.target == 100
    for _ in range(3):
        before = told.target
        told.see(MOVE_S, sample(0.0))
        assert before > told.target >= before - 2 * max(1, int(DOWN_SHARE * before))
    assert told.see(600, sample(0.0)).target == 0


def spiking(now_s: float, began_s: float, rate: float = 2.0) -> Sample:
    """Nothing, then ``rate`` jobs a second of a second each, all done at once."""
    came = rate * max(0.0, now_s - began_s)
    return replace(
        sample(0.0, standard=ClassSample(arrived_jobs=1000 + came, arrived_s=1000 + came)),
        at_s=now_s,
    )


def test_nothing_is_given_back_amid_a_spike() -> None:
    told = Told(pool(keep_alive_s=0.0, cold_start_s=1.0), 8)
    began_s = told.now_s + 300
    told.see(320, lambda now_s: spiking(now_s, began_s))
    told.target = 8
    held = told.see(10, lambda now_s: spiking(now_s, began_s))
    assert held.demand.spike
    assert (held.target, held.bound) == (8, "spike")
    # until a while after the last of it
    stopped_s = told.now_s
    told.see(SPIKE_KEEP_S, lambda now_s: replace(spiking(stopped_s, began_s), at_s=now_s))
    assert told.target == 8
    told.see(300, lambda now_s: replace(spiking(stopped_s, began_s), at_s=now_s))
    assert told.target == 0


def test_a_flow_that_goes_on_is_forecast_and_a_batch_is_not() -> None:
    def need(came: float, going_on: bool) -> int:
        told = Told(pool(cold_start_s=60.0, max_replicas=100), 0)

        def look(now_s: float) -> Sample:
            seconds = now_s - 1000 if going_on else min(1.0, now_s - 1000) * 40
            arrived_s = came / 40 * min(40.0, seconds)
            return replace(
                sample(
                    0.0,
                    standard=ClassSample(
                        10, 100.0, arrived_jobs=arrived_s / 10, arrived_s=arrived_s
                    ),
                ),
                at_s=now_s,
            )

        return told.see(40, look).demand.need

    assert need(1200.0, going_on=True) > need(1200.0, going_on=False) == 1


def test_a_measured_cold_start_replaces_the_expected_one() -> None:
    each = pool(cold_start_s=300.0)
    cluster, rule = simulated((each, Setup(lambda now_s: 40.0), jobs(6, 10.0, 60.0)))
    cluster.run(20)
    assert rule.decisions["wan"].demand.cold_start_s == 300
    cluster.run(60)
    assert rule.decisions["wan"].demand.cold_start_s == pytest.approx(40, abs=3)
    # what replicas say of themselves counts until then
    told = Told(each, 0)
    said = replace(waiting(1), cold_start_s=55.0)
    assert told.see(1, said).demand.cold_start_s == 55


def test_replicas_that_batch_are_asked_for_less() -> None:
    # given two replicas that cannot keep up, and run one job at a time or four in the time of one
    def seen(slots: int) -> Decision:
        setup = Setup(quick, slots=slots, speed=lambda runs: float(runs))
        each = pool(max_replicas=2, objectives_s={"standard": 60.0})
        cluster, rule = simulated((each, setup, jobs(400, 0.0, 40.0, every_s=4.0)))
        cluster.run(600)
        return rule.decisions["wan"]

    alone, batched = seen(1), seen(4)
    # then the policy has seen how much they do in a second
    assert alone.demand.rate == pytest.approx(1.0, abs=0.1)
    assert batched.demand.rate == pytest.approx(4.0, abs=0.5)
    assert batched.demand.need < alone.demand.need / 3


def test_failing_starts_are_tried_ever_later_and_stop_no_other_pool() -> None:
    # given a pool whose replicas fail to start for half an hour, and one whose do not
    broken, sound = pool("broken"), pool("sound")
    cluster, rule = simulated(
        (broken, Setup(quick, fails=lambda now_s: now_s < 1800), jobs(10, 0.0, 40.0)),
        (sound, Setup(quick), jobs(24, 0.0, 40.0)),
        gpus=8,
    )
    cluster.run(1800)
    each = cluster.pools["broken"]
    # then the other one has all that it needs
    assert all(job.first_step_s < 180 for job in cluster.pools["sound"].came)
    # and starts are few, further and further apart, and Serve never gives up for good
    tries = [n for n in range(1, 1800) if each.targets[n] > 0 and each.targets[n - 1] == 0]
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)
    assert 3 <= len(tries) <= 10
    assert gaps[-1] > 4 * BACKOFF_S
    waits = [seen["broken"] for _, seen in rule.log if seen["broken"].bound == "backoff"]
    assert any("the next is tried in" in decision.why for decision in waits)
    # when they start again, then the pool does its work
    cluster.run(1200)
    assert not each.given_up
    assert all(job.done_s < 3000 for job in each.came)


def test_one_failed_start_stops_no_other_start() -> None:
    failed = []

    def fails(now_s: float) -> bool:
        failed.append(now_s)
        return len(failed) == 1

    cluster, _ = simulated((pool(), Setup(quick, fails=fails), jobs(8, 0.0, 200.0)))
    cluster.run(60)
    assert len(cluster.pools["wan"].running) >= 2
    assert cluster.pools["wan"].target >= len(cluster.pools["wan"].running)


def test_the_budget_goes_to_what_is_late_and_to_what_is_dear() -> None:
    def split(**changes: float) -> tuple[int, int]:
        one = pool("one", price=changes.get("price", 1.0))
        other = pool("other")
        cluster, _ = simulated(
            (one, Setup(quick), jobs(int(changes.get("count", 100)), 0.0, 100.0)),
            (other, Setup(quick), jobs(100, 0.0, 100.0)),
            gpus=8,
        )
        cluster.run(200)
        return cluster.pools["one"].target, cluster.pools["other"].target

    assert split() == (4, 4)
    later, other = split(count=300)
    assert later > other > 0
    dearer, other = split(price=3.0)
    assert dearer > other > 0


def test_a_budget_that_binds_says_so_and_two_pools_do_not_pass_it_to_and_fro() -> None:
    # given two pools whose jobs come one by one and one device for both
    one, other = pool("one", max_replicas=1), pool("other", max_replicas=1)
    cluster, rule = simulated(
        (one, Setup(quick), jobs(60, 0.0, 20.0, every_s=60.0)),
        (other, Setup(quick), jobs(60, 30.0, 20.0, every_s=60.0)),
        gpus=1,
        devices=1,
    )
    cluster.run(3600)
    assert "budget" in rule.bounds("one") | rule.bounds("other")
    starts = sum(each.starts for each in cluster.pools.values())
    # then it stays for longer than a start takes, instead of changing hands with each job
    assert starts <= 3600 / (2 * COLD_S)


def test_a_replica_that_is_there_goes_only_to_a_pool_that_is_clearly_later() -> None:
    def given(load: float) -> tuple[int, ...]:
        asks = [
            Ask(pool(name), replicas=8, floor=0, need=8, wanted=8, before=4, load=each)
            for name, each in (("one", 10.0), ("other", load))
        ]
        return tuple(share(asks, Budget(gpus=8), Budget()).values())

    assert given(10) == given(14) == (4, 4)
    assert given(30) == (3, 5)
