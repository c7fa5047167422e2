"""What goes wrong with autoscalers elsewhere, by name, does not happen here.

The production policy, once a second on a virtual clock: on samples that a test makes up, or on
simulated clusters whose replicas start, stop and fail as Ray Serve's do.
"""

from __future__ import annotations

from dataclasses import replace

from autoscale.values import ClassSample, Sample
from loadtest.autoscale.cluster import Job, Scraper, Setup
from tests.pools import Told, direction_changes, jobs, pool, sample, simulated

COLD_S = 30.0


def busy_with(count: int, at_s: float = 0.0) -> Sample:
    """``count`` replicas run a job each and as many wait; as much comes as is done."""
    came_s = 1e6 + count * at_s
    standard = ClassSample(
        count, 60.0 * count, count, 30.0 * count, arrived_jobs=came_s / 60, arrived_s=came_s
    )
    return sample(at_s, busy=count, standard=standard)


def test_metric_loss() -> None:
    # given six replicas at work
    told = Told(pool(), target=6)
    told.see(120, lambda now_s: busy_with(6, now_s))
    at_work = told.target
    assert at_work >= 6
    # when nothing is seen any more, for an hour
    lost = told.see(3600, None)
    # then all stay, and the decision says why
    assert set(told.targets[-3600:]) == {at_work}
    assert lost.bound == "hold"
    assert "no fresh sample" in lost.why
    # and when there is sight again, with nothing to do, the pool is watched before it shrinks
    told.see(59, sample(0.0))
    assert told.target == at_work
    told.see(120, sample(0.0))
    assert told.target == 0


def test_metric_loss_is_of_one_pool_alone() -> None:
    # given two pools, of which only one is seen
    seen, unseen = pool("seen"), pool("unseen")
    work = jobs(40, 0.0, 60.0)
    cluster, rule = simulated((seen, Setup(), work), (unseen, Setup(), work), targets={"unseen": 2})
    look = cluster.scraper.look
    cluster.scraper.look = lambda pools, now_s: {**look(pools, now_s), "unseen": None}  # type: ignore[method-assign]
    # when both have work
    cluster.run(120)
    # then only the other one follows it
    assert max(cluster.pools["seen"].targets) > 4
    assert set(cluster.pools["unseen"].targets) == {2}
    assert rule.bounds("unseen") == {"hold"}


def test_stale_prometheus() -> None:
    # given a pool under load whose samples stop changing while they are still there
    told = Told(pool(), target=4)
    told.see(60, lambda now_s: busy_with(4, now_s))
    stuck = busy_with(4, told.now_s)
    quiet = replace(sample(0.0), at_s=told.now_s)
    for old in (quiet, stuck):

        def old_one(now_s: float, old: Sample = old) -> Sample:
            return old

        # when the same one is read for ten minutes, whatever it says
        told.see(31, old_one)
        before = told.target
        last = told.see(600, old_one)
        # then the count is held
        assert last.bound == "hold"
        assert last.sample_age_s is not None
        assert last.sample_age_s > 600
        assert set(told.targets[-600:]) == {before}


def test_counting_only_queued() -> None:
    # given four replicas that run one long job each, while none waits
    told = Told(pool(), target=4)
    running = sample(0.0, busy=4, standard=ClassSample(0, 0.0, 4, 4 * 300.0))
    # when that stays so for longer than anything is kept
    last = told.see(900, running)
    # then none of them is given up
    assert set(told.targets) == {4}
    assert last.demand.work_s == 1200


def test_double_ordering_during_cold_start() -> None:
    # given a pool at zero, starts of 60 s, and 24 jobs at once that eight replicas do in time
    each = pool(cold_start_s=60.0, objectives_s={"standard": 180.0})
    cluster, rule = simulated((each, Setup(lambda now_s: 60.0), jobs(24, 10.0, 36.0)))
    # when they start, while the jobs wait and have less and less time
    cluster.run(70)
    first = next(decision["wan"].wanted for _, decision in rule.log if decision["wan"].wanted)
    # then it is decided once how many it takes, and not again
    assert first == 8
    assert max(cluster.pools["wan"].targets) == first
    assert cluster.pools["wan"].starts == first


def test_from_zero_to_n_amplification() -> None:
    # given a pool at zero (where a ratio to what is there is infinite)
    cluster, _ = simulated((pool(), Setup(lambda now_s: COLD_S), jobs(1, 10.0, 20.0)))
    # when one job comes
    cluster.run(60)
    # then one replica starts, and no more while it does
    assert max(cluster.pools["wan"].targets) == 1
    assert cluster.pools["wan"].starts == 1


def test_busy_victim() -> None:
    # given eight jobs of which seven end early
    work = [*jobs(7, 0.0, 20.0), *jobs(1, 0.0, 400.0)]
    cluster, rule = simulated((pool(), Setup(lambda now_s: 5.0), work))
    # when the idle replicas go
    cluster.run(600)
    each = cluster.pools["wan"]
    # then there are never fewer than busy ones at the time, and no job has to move
    for _, decisions in rule.log:
        decision = decisions["wan"]
        if decision.target < decision.before:
            assert decision.sample is not None
            assert decision.target >= decision.sample.busy
    assert each.target == 0
    assert all(job.done_s < 600 for job in work)


def test_oscillation_with_the_period_of_a_cold_start() -> None:
    # given starts of 120 s and a load that comes and goes with that period
    each = pool(cold_start_s=120.0, keep_alive_s=60.0)
    waves = [job for n in range(30) for job in jobs(12, 120.0 * n, 40.0, every_s=5.0)]
    cluster, _ = simulated((each, Setup(lambda now_s: 120.0), waves))
    # when it does so for an hour
    cluster.run(3600)
    # then the pool does not follow each of the thirty waves
    assert direction_changes(cluster.pools["wan"].targets[600:]) <= 4
    assert all(job.first_step_s - job.created_s <= 180 for job in waves if job.created_s > 600)


def test_a_step_of_load_does_not_ring() -> None:
    # given a load that doubles once and stays, and replicas that come two minutes later
    each = pool(cold_start_s=120.0)
    work = [*jobs(240, 0.0, 36.0, every_s=15.0), *jobs(160, 1200.0, 36.0, every_s=15.0)]
    cluster, _ = simulated((each, Setup(lambda now_s: 120.0), work))
    cluster.run(3600)
    # then it overshoots once at most
    assert direction_changes(cluster.pools["wan"].targets[600:]) <= 2
    assert cluster.pools["wan"].target in (5, 6, 7)


def test_long_jobs_at_the_head_hiding_short_ones() -> None:
    # given two replicas that are busy for an hour with one job each
    told = Told(pool(), target=2)
    hour = ClassSample(0, 0.0, 2, 7200.0)
    told.see(300, sample(0.0, busy=2, standard=hour))
    assert told.target == 2
    # when ten short jobs come, of 5 s each
    short = ClassSample(10, 50.0, 2, 7200.0, arrived_jobs=10, arrived_s=50)
    told.see(1, sample(0.0, busy=2, standard=short))
    # then one more does them in time: neither none, nor as many as two hours of work ask for
    assert told.target == 3


def test_a_long_job_that_waits_asks_for_one_replica() -> None:
    # given nine replicas that are nearly done, and one job of half an hour
    told = Told(pool(), target=9)
    last = told.see(1, sample(0.0, busy=9, standard=ClassSample(1, 2000.0, 9, 9.0)))
    # then it is not taken for as much work as ten replicas could share
    assert last.demand.need == 2


def test_pool_starvation_at_max_nodes() -> None:
    # given eight devices, all of which one pool could use for the next hours
    greedy = pool("greedy", max_replicas=64)
    small = pool("small", min_replicas=1, max_replicas=4)
    cluster, _ = simulated(
        (greedy, Setup(), jobs(500, 0.0, 100.0)),
        (small, Setup(), jobs(40, 300.0, 10.0, "burst", every_s=30.0)),
        gpus=8,
        devices=8,
    )
    cluster.run(1500)
    # when the other one gets work, then it has had its floor all along, and is served in time
    assert min(cluster.pools["small"].targets) >= 1
    late = [job.first_step_s - job.created_s for job in cluster.pools["small"].came]
    assert max(late) <= 30
    # and what was asked for was there to have, so no replica waited for a device
    for one, other in zip(
        cluster.pools["greedy"].targets, cluster.pools["small"].targets, strict=True
    ):
        assert one + other <= 8
    assert all(each.ready_s < 2000 for pool_ in cluster.pools.values() for each in pool_.replicas)


def test_scale_up_for_jobs_whose_user_is_over_quota() -> None:
    # given a user who may run two jobs at once, and does
    flood = [*jobs(2, 0.0, 300.0, user="one"), *jobs(200, 100.0, 40.0, user="one")]
    cluster, rule = simulated((pool(), Setup(lambda now_s: COLD_S, running_max=2), flood))
    # when they submit two hundred more
    cluster.run(900)
    # then no replica is added, since none could run one of these
    assert max(cluster.pools["wan"].targets) == 2
    assert rule.decisions["wan"].demand.slow < 3


def test_work_that_is_parked_has_not_come() -> None:
    # given a user whose two jobs run, and who goes on submitting
    told = Told(pool(), target=2)

    def look(now_s: float) -> Sample:
        parked_s = 40.0 * (now_s - 1000)
        flood = ClassSample(0, 0.0, 2, 900.0, parked_s, 0.0, 2 + parked_s / 40, 80 + parked_s)
        return sample(now_s, busy=2, standard=flood)

    last = told.see(600, look)
    # then nothing is seen to come, and no replica is added
    assert (last.demand.fast, last.demand.slow, last.demand.spike) == (0, 0, False)
    assert set(told.targets) == {2}


def test_retry_storms_counted_as_demand() -> None:
    # given jobs that come back to the queue again and again, as their leases lapse
    told = Told(pool(), target=2)
    waits = sample(0.0, busy=0, standard=ClassSample(2, 60.0, 0, 0.0, 0.0, 0.0, 2, 60.0))
    runs = sample(0.0, busy=2, standard=ClassSample(0, 0.0, 2, 60.0, 0.0, 0.0, 2, 60.0))
    last = told.see(600, lambda now_s: replace(waits if now_s % 20 < 10 else runs, at_s=now_s))
    # then they are two jobs, and nothing has come
    assert set(told.targets) <= {1, 2}
    assert (last.demand.fast, last.demand.slow, last.demand.spike) == (0, 0, False)


def test_spot_loss_cascade() -> None:
    # given eight replicas with as much work as they can do
    work = jobs(200, 0.0, 40.0, every_s=6.0)
    cluster, _ = simulated((pool(), Setup(lambda now_s: COLD_S), work))
    cluster.run(600)
    each = cluster.pools["wan"]
    before = each.target
    # when all but two are taken away at once, and these two a little later
    each.lose(len(each.replicas) - 2)
    cluster.run(20)
    each.lose(len(each.replicas))
    cluster.run(400)
    # then they are replaced, by a few more for the work that piled up, and not by ever more
    after = each.targets[600:]
    assert min(after[:60]) >= before
    assert max(after) <= 2 * before
    assert all(job.first_step_s - job.created_s <= 180 for job in each.came if job.leases)
    cluster.run(900)
    assert all(job.done_s < 2000 for job in work)


def test_clock_skew_between_sources() -> None:
    # given three sources of the same state whose clocks differ by hours and by seconds
    def run(skew: dict[int, float]) -> list[int]:
        told = Told(pool(), target=4)

        def look(now_s: float) -> Sample:
            return replace(busy_with(4, now_s), at_s=now_s + skew[int(now_s) % len(skew)])

        told.see(900, look)
        return told.targets

    # when they are read in turn, then the targets are those of one right clock
    right = run({0: 0.0})
    for skew in (
        {0: 7200.0},
        {0: -7200.0},
        {0: 0.0, 1: 2.0},
        {0: 0.0, 1: -3.0, 2: 1.0},
        {0: 0.0, 1: 3600.0},
    ):
        assert run(skew)[120:] == right[120:]


def test_a_clock_that_is_set_back() -> None:
    # given a source whose clock goes back by an hour
    told = Told(pool(), target=2)
    told.see(120, lambda now_s: busy_with(2, now_s))
    # when there is suddenly much to do
    last = told.see(30, lambda now_s: replace(busy_with(8, now_s), at_s=now_s - 3600))
    # then that is no stale sample
    assert last.bound != "hold"
    assert told.target > 2


def test_a_scraper_that_goes_blind_amid_a_spike() -> None:
    # given a spike, in the middle of which nothing is seen for five minutes
    work = [Job(100.0 + n, 30.0, "standard") for n in range(200)]
    cluster, rule = simulated(
        (pool(), Setup(lambda now_s: COLD_S), work), scraper=Scraper(blind=(160.0, 460.0))
    )
    cluster.run(160)
    held = cluster.pools["wan"].target
    assert held > 1
    cluster.run(300)
    # then the count is held for so long, and everything is done in the end
    assert set(cluster.pools["wan"].targets[161:460]) == {held}
    assert "hold" in rule.bounds("wan")
    cluster.run(1500)
    assert all(job.done_s < 2000 for job in work)
    assert cluster.pools["wan"].target == 0
