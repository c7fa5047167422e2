"""The queue's scripts, on every supported Redis."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from serving.jobs.job import TERMINAL, TRANSITIONS, Phase, State
from serving.jobs.queue import JobQueue
from serving.plan.errors import (
    ModelFailed,
    NotFound,
    QueueFull,
    ServiceUnavailable,
    StaleLease,
)
from tests.jobs import LEASE_MS, lease, leased, spec, submit

pytestmark = pytest.mark.asyncio


async def test_a_submitted_job_waits_with_everything_it_was_given(queue: JobQueue) -> None:
    job = await submit(queue, seed=7)
    assert (job.state, job.user, job.pool, job.alias) == (
        State.QUEUED,
        "ann",
        "demo-wan",
        "sora-2",
    )
    assert job.spec == spec(seed=7)
    assert await queue.get(job.id, user="ann") == job


async def test_submitting_twice_under_one_id_is_one_job(queue: JobQueue) -> None:
    first = await submit(queue, job_id="video_x")
    assert await submit(queue, job_id="video_x") == first
    assert await leased(queue)
    assert await lease(queue) is None


async def test_a_full_queue_refuses_and_writes_nothing(queue: JobQueue, redis: Redis) -> None:
    await submit(queue, queued_max=1)
    before = set(await redis.keys("*"))
    with pytest.raises(QueueFull, match="1 jobs already wait"):
        await submit(queue, queued_max=1)
    assert set(await redis.keys("*")) == before


async def test_the_oldest_goes_first(queue: JobQueue) -> None:
    jobs = [await submit(queue) for _ in range(3)]
    assert [(await leased(queue)).id for _ in jobs] == [job.id for job in jobs]
    assert await lease(queue) is None


async def test_position_counts_the_jobs_ahead(queue: JobQueue) -> None:
    jobs = [await submit(queue) for _ in range(3)]
    assert [(await queue.place(job)).ahead for job in jobs] == [0, 1, 2]
    running = await leased(queue)
    await queue.heartbeat(running, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=1, remaining_ms=700)
    place = await queue.place(await queue.get(jobs[2].id, user="ann"))
    assert (place.ahead, place.running_ms) == (1, [700])


async def test_each_lease_has_a_higher_fence(queue: JobQueue) -> None:
    await submit(queue)
    first = await leased(queue)
    await queue.give_back(first)
    second = await leased(queue)
    assert second.id == first.id
    assert second.fence > first.fence


async def test_concurrent_leases_never_share_a_job(queue: JobQueue) -> None:
    submitted = {(await submit(queue)).id for _ in range(20)}
    got = await asyncio.gather(*(lease(queue, replica=f"r{i}") for i in range(30)))
    ids = [job.id for job in got if job]
    assert sorted(ids) == sorted(submitted)


async def test_a_heartbeat_records_progress_and_renews(queue: JobQueue) -> None:
    await submit(queue)
    job = await leased(queue, lease_ms=1000)
    await queue.heartbeat(job, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=3, remaining_ms=40)
    now = await queue.get(job.id, user="ann")
    assert (now.phase, now.step, now.remaining_ms, now.progress) == (Phase.DENOISE, 3, 40, 75)
    assert now.lease_until_ms > job.lease_until_ms


async def test_a_finished_job_has_its_result(queue: JobQueue) -> None:
    await submit(queue)
    job = await leased(queue)
    await queue.complete(job, {"artifacts": {"video": {"key": "k"}}})
    done = await queue.get(job.id, user="ann")
    assert (done.state, done.progress) == (State.COMPLETED, 100)
    assert done.result == {"artifacts": {"video": {"key": "k"}}}
    assert done.finished_ms >= done.started_ms >= done.created_ms


async def test_finishing_again_after_a_lost_answer_is_fine(queue: JobQueue) -> None:
    await submit(queue)
    job = await leased(queue)
    await queue.complete(job, {"a": 1})
    await queue.complete(job, {"a": 1})
    with pytest.raises(StaleLease):
        await queue.complete(job, {"a": 2})
    assert (await queue.pools(["demo-wan"]))["demo-wan"].ended == {State.COMPLETED: 1}


async def test_a_failed_job_says_why(queue: JobQueue) -> None:
    await submit(queue)
    await queue.fail(job := await leased(queue), ModelFailed("it broke"))
    failed = await queue.get(job.id, user="ann")
    assert failed.state is State.FAILED
    assert failed.error == {"code": "model_failed", "message": "it broke"}


async def test_a_yield_keeps_the_place_and_is_no_attempt(queue: JobQueue) -> None:
    first, second = await submit(queue), await submit(queue)
    await queue.give_back(await leased(queue))
    again = await leased(queue)
    assert (again.id, again.attempts) == (first.id, 1)
    assert (await leased(queue)).id == second.id


async def test_a_lapsed_lease_returns_the_job_to_its_place(queue: JobQueue) -> None:
    first, second = await submit(queue), await submit(queue)
    stale = await leased(queue, lease_ms=1)
    await asyncio.sleep(0.01)
    again = await leased(queue, replica="r2")
    assert (again.id, again.attempts, again.replica) == (first.id, 2, "r2")
    assert (await leased(queue)).id == second.id
    # Everything the lost run still tries changes nothing.
    for write in (
        queue.heartbeat(stale, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=1, remaining_ms=1),
        queue.complete(stale, {}),
        queue.fail(stale, ModelFailed("late")),
        queue.give_back(stale),
    ):
        with pytest.raises(StaleLease):
            await write
    assert await queue.get(first.id, user="ann") == again


async def test_a_job_that_loses_every_replica_fails_and_the_next_runs(queue: JobQueue) -> None:
    poison, healthy = await submit(queue), await submit(queue)
    for _ in range(3):
        assert (await leased(queue, lease_ms=1)).id == poison.id
        await asyncio.sleep(0.01)
    assert (await leased(queue)).id == healthy.id
    failed = await queue.get(poison.id, user="ann")
    assert (failed.state, failed.error["code"]) == (State.FAILED, "replica_lost")


async def test_cancelling_a_queued_job_ends_it(queue: JobQueue) -> None:
    job = await submit(queue)
    cancelled = await queue.cancel(job.id, user="ann")
    assert (cancelled.state, cancelled.error["code"]) == (State.CANCELLED, "cancelled")
    assert await lease(queue) is None


async def test_cancelling_a_running_job_makes_its_fence_stale_and_tells_the_replica(
    queue: JobQueue,
) -> None:
    await submit(queue)
    job = await leased(queue)
    async with queue.signals("demo-wan") as signals:
        assert (await queue.cancel(job.id, user="ann")).state is State.CANCELLED
        dropped = await signals.next(timeout_s=5)
        assert dropped is not None
        assert (dropped.job_id, dropped.fence) == (job.id, job.fence)
    with pytest.raises(StaleLease):
        await queue.complete(job, {})


async def test_cancelling_twice_or_too_late_changes_nothing(queue: JobQueue) -> None:
    job = await submit(queue)
    once = await queue.cancel(job.id, user="ann")
    assert await queue.cancel(job.id, user="ann") == once
    await submit(queue)
    done = await leased(queue)
    await queue.complete(done, {})
    assert (await queue.cancel(done.id, user="ann")).state is State.COMPLETED


async def test_a_deleted_job_is_gone_for_its_owner_and_its_replica(queue: JobQueue) -> None:
    await submit(queue)
    job = await leased(queue)
    await queue.delete(job.id, user="ann")
    with pytest.raises(NotFound):
        await queue.get(job.id, user="ann")
    with pytest.raises(StaleLease):
        await queue.heartbeat(job, lease_ms=LEASE_MS, phase=Phase.DECODE, step=1, remaining_ms=1)
    assert (await queue.list("ann", limit=10)).jobs == []
    assert (await queue.pools(["demo-wan"]))["demo-wan"].ended == {State.CANCELLED: 1}


async def test_another_users_job_is_not_found(queue: JobQueue) -> None:
    job = await submit(queue)
    for attempt in (queue.get, queue.cancel, queue.delete):
        with pytest.raises(NotFound):
            await attempt(job.id, user="bob")
    assert (await queue.get(job.id, user="ann")).state is State.QUEUED


async def test_pages_cover_a_list_in_both_orders(queue: JobQueue) -> None:
    ids = [(await submit(queue)).id for _ in range(5)]
    await submit(queue, user="bob")
    for newest_first, expected in ((True, ids[::-1]), (False, ids)):
        got, after = [], None
        while True:
            page = await queue.list("ann", limit=2, after=after, newest_first=newest_first)
            got += [job.id for job in page.jobs]
            if not page.has_more:
                break
            after = got[-1]
        assert got == expected
    with pytest.raises(NotFound, match="'after'"):
        await queue.list("ann", limit=2, after="video_of_nobody")


async def test_pool_counts(queue: JobQueue) -> None:
    for _ in range(3):
        await submit(queue)
    await queue.complete(await leased(queue), {})
    await leased(queue)
    await asyncio.sleep(0.02)
    pool = (await queue.pools(["demo-wan", "idle"]))["demo-wan"]
    assert (pool.queued, pool.in_progress, pool.ended) == (1, 1, {State.COMPLETED: 1})
    assert 10 < pool.oldest_ms < 10_000
    assert (await queue.pools(["idle"]))["idle"].oldest_ms == 0


async def test_a_submission_wakes_a_listener(queue: JobQueue) -> None:
    async with queue.signals("demo-wan") as signals:
        waiting = asyncio.create_task(signals.next(timeout_s=30))
        await asyncio.sleep(0)
        await submit(queue)
        assert await asyncio.wait_for(waiting, 5) is None


async def test_scripts_survive_a_redis_that_forgot_them(queue: JobQueue, redis: Redis) -> None:
    await submit(queue)
    await redis.script_flush()
    assert await leased(queue)


async def test_a_redis_that_is_away_is_unavailable() -> None:
    away: Redis = Redis(port=1, decode_responses=True)
    with pytest.raises(ServiceUnavailable):
        await submit(JobQueue(away))


async def test_acknowledged_jobs_survive_a_killed_redis(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    client: Redis = Redis.from_url(server.start(), decode_responses=True)
    queue = JobQueue(client)
    jobs = [await submit(queue) for _ in range(20)]
    running = await leased(queue)
    os.kill(server.pid, signal.SIGKILL)
    await client.aclose()
    server.stop()
    client = Redis.from_url(server.start(), decode_responses=True)
    queue = JobQueue(client)
    assert [await queue.get(job.id, user="ann") for job in jobs[1:]] == jobs[1:]
    await queue.complete(running, {})
    assert (await leased(queue)).id == jobs[1].id
    await client.aclose()
    server.stop()


async def test_only_legal_transitions_exist() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(not TRANSITIONS[state] for state in TERMINAL)
