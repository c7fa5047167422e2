"""What the queue says of a pool, after what was done to it: figures for scaling and for people."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from quota.tiers import Tiers
from serving.jobs import (
    Backlog,
    Cell,
    Job,
    JobQueue,
    JobSettings,
    Leases,
    Limits,
    Phase,
    PoolState,
    ReplicaStatus,
    Starts,
    State,
    Upkeep,
    Wish,
)
from serving.plan.classes import CLASSES, ClassPolicy, ServiceClass
from serving.plan.errors import (
    CheckpointCorrupt,
    IdempotencyMismatch,
    ModelFailed,
    Refused,
    StaleLease,
)
from tests.jobs import LEASE_MS, leased, spec, submit

pytestmark = pytest.mark.asyncio

BURST, STANDARD, RELAXED = CLASSES
POOL = "demo-wan"


async def state(queue: JobQueue) -> PoolState:
    return (await queue.pools([POOL]))[POOL]


async def of_class(queue: JobQueue, service_class: ServiceClass, **asked: Any) -> Job:
    return await submit(queue, limits=Limits(inside=service_class), **asked)


async def progress(leases: Leases, job: Job, step: int, spent_ms: int = 0) -> None:
    await leases.heartbeat(
        job, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=step, remaining_ms=1, spent_ms=spent_ms
    )


# What waits, runs and arrived.


async def test_an_empty_pool_has_nothing(queue: JobQueue) -> None:
    found = await state(queue)
    assert (found.queued, found.in_progress, found.oldest_ms, found.replicas) == (0, 0, 0, [])
    assert found.backlog == dict.fromkeys(CLASSES, Backlog())
    assert (found.starts, found.times, found.slo) == (Starts(), {}, {})


async def test_the_backlog_is_by_class_and_has_what_is_left(
    queue: JobQueue, leases: Leases
) -> None:
    await of_class(queue, BURST, est_device_ms=700)
    waiting = [await of_class(queue, STANDARD, est_device_ms=ms) for ms in (1000, 2000)]
    found = await state(queue)
    assert (found.queued, found.in_progress) == (3, 0)
    assert [found.backlog[each].queued_jobs for each in CLASSES] == [1, 2, 0]
    assert [found.backlog[each].queued_ms for each in CLASSES] == [700, 3000, 0]
    # When a part of one was made and saved, and another runs:
    run = await leased(leases)
    await progress(leases, run, 2, spent_ms=450)
    found = await state(queue)
    assert (found.backlog[BURST].queued_jobs, found.backlog[BURST].queued_ms) == (0, 0)
    assert (found.backlog[BURST].in_flight_jobs, found.backlog[BURST].in_flight_ms) == (1, 250)
    await leases.checkpoint(run, "file", 2, 300)
    await leases.give_back(run, spent_ms=450, step=2)
    found = await state(queue)
    assert (found.backlog[BURST].queued_jobs, found.backlog[BURST].queued_ms) == (1, 300)
    assert (found.backlog[BURST].in_flight_jobs, found.backlog[BURST].in_flight_ms) == (0, 0)
    # Going on with it, what was spent before is no part of what is left.
    for job in waiting:
        await queue.cancel(job.id, user="ann")
    again = await leased(leases)
    assert (await state(queue)).backlog[BURST].in_flight_ms == 300
    await progress(leases, again, 3, spent_ms=100)
    assert (await state(queue)).backlog[BURST].in_flight_ms == 200
    # One that takes longer than was estimated has nothing left, not less.
    await progress(leases, again, 3, spent_ms=5000)
    assert (await state(queue)).backlog[BURST].in_flight_ms == 0


async def test_arrivals_only_grow_and_only_by_what_is_accepted(
    queue: JobQueue, cell: Cell, leases: Leases, upkeep: Upkeep
) -> None:
    async def arrived() -> tuple[int, int]:
        backlog = (await state(queue)).backlog[STANDARD]
        return backlog.arrived_jobs, backlog.arrived_ms

    first = await submit(queue, est_device_ms=1000)
    await submit(queue, est_device_ms=500)
    assert await arrived() == (2, 1500)
    run = await leased(leases)
    assert await arrived() == (2, 1500)
    await leases.checkpoint(run, "file", 2, 200)
    await leases.give_back(run, step=2)
    assert await arrived() == (2, 1500)
    run = await leased(leases, lease_ms=1)
    await leases.refused(run, CheckpointCorrupt("x"))
    await asyncio.sleep(0.02)
    await upkeep.tidy()  # the lease is lost
    assert await arrived() == (2, 1500)
    await leases.complete(await leased(leases), {})
    await leases.fail(await leased(leases), ModelFailed("x"))
    assert await arrived() == (2, 1500)
    waiting = await submit(queue, est_device_ms=40)
    await queue.cancel(waiting.id, user="ann")
    await queue.delete(first.id, user="ann")
    assert await arrived() == (3, 1540)
    await submit(queue, est_device_ms=7)
    await asyncio.sleep(1.05)
    await Upkeep(cell, JobSettings(queue_ttl_s=1)).tidy()
    assert (await state(queue)).ended[State.EXPIRED] == 1
    assert await arrived() == (4, 1547)


async def test_the_oldest_wait_is_of_each_class(queue: JobQueue, leases: Leases) -> None:
    await of_class(queue, STANDARD)
    await asyncio.sleep(0.1)
    await of_class(queue, RELAXED)
    await of_class(queue, STANDARD)
    await asyncio.sleep(0.05)
    found = await state(queue)
    ages = [found.backlog[each].oldest_ms for each in CLASSES]
    assert ages[0] == 0
    assert 50 <= ages[2] <= ages[1] - 90
    assert found.oldest_ms == ages[1]
    await leased(leases)
    found = await state(queue)
    assert found.backlog[STANDARD].oldest_ms <= found.backlog[RELAXED].oldest_ms


async def test_jobs_of_users_who_run_all_they_may_are_parked(
    queue: JobQueue, leases: Leases
) -> None:
    # Given a tier of one job at a time, and two users with three and one job of a second
    await queue.apply_tiers(
        Tiers.model_validate({"default_tier": "one", "tiers": {"one": {"running_jobs": 1}}})
    )
    for user in ("ann", "ann", "ann", "bob"):
        await submit(queue, user=user, est_device_ms=1000)
    backlog = (await state(queue)).backlog[STANDARD]
    assert (backlog.queued_jobs, backlog.parked_jobs) == (4, 0)
    # When one of ann's runs
    job = await leased(leases)
    assert job.user == "ann"
    # Then her others wait for it, and no replica could take them
    backlog = (await state(queue)).backlog[STANDARD]
    assert (backlog.queued_jobs, backlog.queued_ms) == (1, 1000)
    assert (backlog.parked_jobs, backlog.parked_ms) == (2, 2000)
    # And the oldest of those that may be leased is bob's, which came last
    await asyncio.sleep(0.05)
    other = await leased(leases)
    assert other.user == "bob"
    found = await state(queue)
    assert found.backlog[STANDARD].oldest_ms == 0
    assert found.queued == 2
    # And when hers ends, the next may be leased
    await leases.complete(job, {})
    assert (await state(queue)).backlog[STANDARD].parked_jobs == 0
    assert (await state(queue)).backlog[STANDARD].oldest_ms > 0


async def test_behind_hundreds_of_older_jobs_the_oldest_wait_is_an_upper_bound(
    cell: Cell,
) -> None:
    queue = JobQueue(cell, JobSettings(queue_max=1000))
    for _ in range(513):
        await of_class(queue, STANDARD)
    await asyncio.sleep(0.05)
    await of_class(queue, BURST)
    found = await state(queue)
    assert 50 <= found.backlog[BURST].oldest_ms <= found.backlog[STANDARD].oldest_ms
    assert found.backlog[RELAXED].oldest_ms == 0


# Replicas.


async def announce(leases: Leases, free: int = 2, **more: Any) -> None:
    await leases.announce(host="h", pid=1, slots=2, free=free, age_ms=0, **more)


async def test_a_replica_starts_serves_and_drains(
    queue: JobQueue, leases: Leases, redis: Redis, cell: Cell
) -> None:
    async def said() -> list[ReplicaStatus]:
        return [replica.state for replica in (await state(queue)).replicas]

    await leases.announce(host="h", pid=1, slots=0, free=0, age_ms=9, state=ReplicaStatus.STARTING)
    assert await said() == [ReplicaStatus.STARTING]
    # It takes no jobs yet, so nobody counts on it.
    assert not await redis.exists(cell.key("replicas", POOL), cell.key("idle", POOL))
    await announce(leases)
    assert await said() == [ReplicaStatus.IDLE]
    await announce(leases, free=1)
    assert await said() == [ReplicaStatus.BUSY]
    await announce(leases)
    assert await redis.zcard(cell.key("idle", POOL)) == 1
    await announce(leases, state=ReplicaStatus.DRAINING)
    assert await said() == [ReplicaStatus.DRAINING]
    # No job is held back for it.
    assert await redis.zcard(cell.key("idle", POOL)) == 0
    await leases.retire()
    assert await said() == []


async def test_start_ups_are_counted_once_and_the_latest_are_kept(
    queue: JobQueue, cell: Cell
) -> None:
    for number in range(20):
        replica = Leases(cell, POOL, f"r{number}")
        await announce(replica, start_ms=1000 * number)
        await announce(replica, start_ms=1000 * number)
        await announce(replica)
    starts = (await state(queue)).starts
    assert (starts.ready, starts.failed, starts.failures) == (20, 0, 0)
    assert starts.latest_s == tuple(float(number) for number in range(19, 3, -1))
    assert starts.cold_start_s == 18


async def test_failed_starts_are_a_streak_until_one_succeeds(
    queue: JobQueue, cell: Cell, redis: Redis, upkeep: Upkeep
) -> None:
    async def starting(name: str) -> Leases:
        replica = Leases(cell, POOL, name)
        await announce(replica, state=ReplicaStatus.STARTING)
        return replica

    for name in ("r1", "r2"):
        replica = await starting(name)
        await replica.start_failed("ConfigError")
        await replica.start_failed("ConfigError")
    # One that is killed says nothing.
    await starting("r3")
    await upkeep.tidy()
    found = await state(queue)
    assert (found.starts.failures, len(found.replicas)) == (2, 1)
    await redis.delete(cell.key("replica", "r3"))  # as its time-out does
    await upkeep.tidy()
    await upkeep.tidy()
    starts = (await state(queue)).starts
    assert (starts.ready, starts.failed, starts.failures) == (0, 3, 3)
    assert (starts.error, starts.cold_start_s) == ("silent", None)
    assert 0 <= starts.failure_age_s < 5
    good = await starting("r4")
    await announce(good, start_ms=1500)
    starts = (await state(queue)).starts
    assert (starts.ready, starts.failed, starts.failures, starts.error) == (1, 3, 0, "")
    assert starts.cold_start_s == 1.5
    await (await starting("r5")).start_failed("OSError")
    assert (await state(queue)).starts.failures == 1
    # One that leaves while it starts, as asked, failed at nothing.
    leaving = await starting("r6")
    await leaving.retire()
    await upkeep.tidy()
    assert (await state(queue)).starts.failed == 4


# How long jobs take, and whether that was as promised.


async def test_waits_are_measured_to_the_first_lease_and_first_steps_once(
    queue: JobQueue, leases: Leases
) -> None:
    await submit(queue)
    run = await leased(leases)
    await progress(leases, run, 0)
    assert (await state(queue)).times == {}
    await asyncio.sleep(0.6)
    await progress(leases, run, 1)
    await progress(leases, run, 2)
    assert (await state(queue)).times[STANDARD, "wait"].counts == [1, *[0] * 15]
    await leases.give_back(run, step=2)
    run = await leased(leases)
    await progress(leases, run, 1)
    times = (await state(queue)).times
    assert times[STANDARD, "wait"].count == 1
    first = times[STANDARD, "first_step"]
    assert (first.counts[0], first.count) == (0, 1)
    assert 0.6 <= first.sum_s < 20
    await leases.complete(run, {})
    times = (await state(queue)).times
    assert times[STANDARD, "done"].count == times[STANDARD, "first_step"].count == 1
    assert times[STANDARD, "done"].sum_s >= first.sum_s


async def test_only_what_was_made_has_a_duration(queue: JobQueue, leases: Leases) -> None:
    jobs = [await submit(queue) for _ in range(3)]
    await queue.cancel(jobs[0].id, user="ann")
    await leases.fail(await leased(leases), ModelFailed("x"))
    await leases.complete(await leased(leases), {})
    times = (await state(queue)).times
    # Of the one that was made nobody said when it began: not later than its end.
    counts = {name: found.count for (_, name), found in times.items()}
    assert counts == {"wait": 2, "first_step": 1, "done": 1}


async def test_a_repeated_ending_is_counted_once(queue: JobQueue, leases: Leases) -> None:
    await queue.apply_objectives({POOL: {STANDARD: ClassPolicy(share=0.5, first_step_s=60)}})
    await submit(queue)
    run = await leased(leases)
    await leases.complete(run, {})
    await leases.complete(run, {})
    with pytest.raises(StaleLease):
        await leases.fail(run, ModelFailed("x"))
    found = await state(queue)
    assert found.times[STANDARD, "done"].count == 1
    assert sum(found.slo.values()) == 2


OBJECTIVES = {
    BURST: ClassPolicy(share=0.4, first_step_s=0.3, factor=3),
    STANDARD: ClassPolicy(share=0.3, first_step_s=60, factor=3),
    RELAXED: ClassPolicy(share=0.1, factor=3),
}


@pytest.mark.parametrize("service_class", CLASSES)
async def test_a_job_that_began_late_was_in_time_only_where_nothing_was_promised(
    queue: JobQueue, leases: Leases, service_class: ServiceClass
) -> None:
    await queue.apply_objectives({POOL: OBJECTIVES})
    await of_class(queue, service_class, est_device_ms=60_000)
    run = await leased(leases)
    await asyncio.sleep(0.4)
    await progress(leases, run, 1)
    await leases.complete(run, {})
    expected = {(service_class, "done", "attained"): 1}
    match service_class:
        case ServiceClass.BURST:
            expected[service_class, "first_step", "missed"] = 1
        case ServiceClass.STANDARD:
            expected[service_class, "first_step", "attained"] = 1
    assert (await state(queue)).slo == expected


async def test_a_job_that_took_many_times_its_estimate_was_done_too_late(
    queue: JobQueue, leases: Leases
) -> None:
    await queue.apply_objectives({POOL: OBJECTIVES})
    await submit(queue, est_device_ms=50)
    run = await leased(leases)
    await progress(leases, run, 1)
    await asyncio.sleep(0.2)
    await leases.complete(run, {})
    slo = (await state(queue)).slo
    assert slo == {(STANDARD, "first_step", "attained"): 1, (STANDARD, "done", "missed"): 1}


async def test_failed_and_expired_jobs_missed_and_cancelled_ones_are_not_counted(
    queue: JobQueue, leases: Leases, cell: Cell
) -> None:
    await queue.apply_objectives({POOL: OBJECTIVES})
    await submit(queue)
    run = await leased(leases)
    await progress(leases, run, 1)
    await leases.fail(run, ModelFailed("x"))
    both = {(STANDARD, "first_step", "missed"): 1, (STANDARD, "done", "missed"): 1}
    assert (await state(queue)).slo == both
    cancelled = await submit(queue)
    await queue.cancel(cancelled.id, user="ann")
    assert (await state(queue)).slo == both
    await of_class(queue, RELAXED)
    await asyncio.sleep(1.1)
    await Upkeep(cell, JobSettings(queue_ttl_s=1)).tidy()
    assert (await state(queue)).slo == both | {(RELAXED, "done", "missed"): 1}
    # Nothing is measured by what nobody promised.
    await queue.apply_objectives({POOL: {BURST: OBJECTIVES[BURST]}})
    await submit(queue)
    await leases.complete(await leased(leases), {})
    assert sum((await state(queue)).slo.values()) == 3


# Steps for nothing.


async def test_a_yield_counts_the_steps_that_were_not_saved(
    queue: JobQueue, leases: Leases
) -> None:
    await submit(queue)
    run = await leased(leases)
    await leases.checkpoint(run, "file", 2, 500)
    await progress(leases, run, 2)
    await leases.give_back(run, step=3)  # further than was last said
    assert (await state(queue)).steps == {"redone": 1}
    run = await leased(leases)
    await leases.give_back(run, step=run.checkpoint_step)
    assert (await state(queue)).steps == {"redone": 1}


async def test_a_lost_lease_counts_the_steps_that_were_not_saved(
    queue: JobQueue, leases: Leases, upkeep: Upkeep
) -> None:
    await submit(queue)
    run = await leased(leases)
    await leases.checkpoint(run, "file", 1, 500)
    await progress(leases, run, 4)
    await upkeep.recover()
    assert (await state(queue)).steps == {"lost": 3}
    # And a checkpoint that is of no use those that it had saved.
    run = await leased(leases)
    await leases.refused(run, CheckpointCorrupt("x"))
    await leases.refused(run, CheckpointCorrupt("x"))
    assert (await state(queue)).steps == {"lost": 4}
    await upkeep.recover()
    run = await leased(leases)
    await progress(leases, run, 2)
    await upkeep.recover()  # its last attempt: nobody makes them again, and they were for nothing
    assert (await state(queue)).steps == {"lost": 6}


# Refusals.


async def test_refusals_are_counted_by_reason_but_not_questions(
    queue: JobQueue, cell: Cell
) -> None:
    midnights_ms = [day * 86_400_000 for day in range(60_000)]
    daily = Limits(generations=0, beyond="refuse", days_ms=midnights_ms[-40_100:])
    full = JobQueue(cell, JobSettings(queue_max=2))
    own = Limits(queued_jobs=0)
    rate = Limits(requests_per_minute=1)

    async def refused(expected: str, **asked: Any) -> None:
        with pytest.raises((Refused, IdempotencyMismatch)):
            await submit(asked.pop("queue", queue), **asked)
        assert (await state(queue)).refused.get(expected, 0) == 1

    await refused("generations", limits=daily)
    await refused("own", limits=own)
    await submit(queue, user="bob", limits=rate)
    await refused("rate", user="bob", limits=rate)
    await submit(queue)
    await refused("pool", queue=full)
    key = Wish(idempotency_key="k", body_sha256="a")
    await submit(queue, wish=key)
    await refused("mismatch", wish=Wish(idempotency_key="k", body_sha256="b"))
    await submit(queue, wish=key)
    counted = {"generations": 1, "own": 1, "rate": 1, "pool": 1, "mismatch": 1, "replayed": 1}
    assert (await state(queue)).refused == counted
    with pytest.raises(Refused):
        await submit_dry(queue, own)
    assert (await state(queue)).refused == counted


async def submit_dry(queue: JobQueue, limits: Limits) -> None:
    await queue.submit(
        "video_dry", user="ann", alias="a", spec=spec(), est_device_ms=1, limits=limits, dry=True
    )
