"""The queue's scripts, on every supported Redis."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deployments.redis_server import RedisServer
from serving.jobs import (
    IDLE,
    Cell,
    Drop,
    JobQueue,
    JobSettings,
    Leases,
    Phase,
    State,
    Upkeep,
    Wake,
)
from serving.plan.errors import (
    CheckpointCorrupt,
    ConfigError,
    ModelFailed,
    NotFound,
    QueueFull,
    ServiceUnavailable,
    StaleLease,
)
from serving.plan.rank import Contender
from tests.jobs import LEASE_MS, SHARES, leased, spec, submit

pytestmark = pytest.mark.asyncio


async def state_of(queue: JobQueue, job_id: str) -> State:
    return (await queue.get(job_id, user="ann")).state


# Submitting and leasing.


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


async def test_submitting_twice_under_one_id_is_one_job(queue: JobQueue, leases: Leases) -> None:
    first = await submit(queue, job_id="video_x")
    assert await submit(queue, job_id="video_x") == first
    assert await leased(leases)
    assert await leases.lease(LEASE_MS) is None


async def test_a_lease_whose_answer_was_lost_is_the_same_lease(
    queue: JobQueue, cell: Cell, leases: Leases
) -> None:
    job, other = await submit(queue), await submit(queue)
    room = IDLE.to_json(1, SHARES)
    first = await cell.run("lease", "demo-wan", "r1", LEASE_MS, "token", 3, "", room)
    again = await cell.run("lease", "demo-wan", "r1", LEASE_MS, "token", 3, "", room)
    assert again[1:] == first[1:]
    assert (await queue.get(job.id, user="ann")).attempts == 1
    assert (await leased(leases)).id == other.id


async def test_a_lease_that_got_no_answer_is_asked_for_again(
    queue: JobQueue, cell: Cell, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submit(queue)
    run = Cell.run

    async def lost(self: Cell, script: str, *args: str | int) -> object:
        await run(self, script, *args)
        raise ServiceUnavailable("the answer was lost")

    monkeypatch.setattr(Cell, "run", lost)
    with pytest.raises(ServiceUnavailable):
        await leases.lease(LEASE_MS)
    monkeypatch.undo()
    again = await leased(leases)
    assert (again.id, again.attempts) == (job.id, 1)


async def test_a_full_queue_refuses_and_writes_nothing_but_that_it_did(
    cell: Cell, redis: Redis
) -> None:
    queue = JobQueue(cell, JobSettings(queue_max=1))
    await submit(queue)
    before = set(await redis.keys("*"))
    with pytest.raises(QueueFull, match="As many jobs already wait"):
        await submit(queue)
    assert set(await redis.keys("*")) - before == {cell.key("refused", "demo-wan")}


async def test_the_oldest_goes_first(queue: JobQueue, leases: Leases) -> None:
    jobs = [await submit(queue) for _ in range(3)]
    assert [(await leased(leases)).id for _ in jobs] == [job.id for job in jobs]
    assert await leases.lease(LEASE_MS) is None


async def test_place_counts_the_jobs_ahead_and_what_runs(queue: JobQueue, leases: Leases) -> None:
    jobs = [await submit(queue) for _ in range(3)]
    places = [await queue.place(job) for job in jobs]
    assert [place.ahead for place in places] == [0, 1, 2]
    assert [place.ahead_ms for place in places] == [0, 1000, 2000], "by their estimates"
    running = await leased(leases)
    await leases.heartbeat(running, lease_ms=9, phase=Phase.DENOISE, step=1, remaining_ms=700)
    place = await queue.place(await queue.get(jobs[2].id, user="ann"))
    assert (place.ahead, place.ahead_ms, place.running_ms) == (1, 1000, [700])


async def test_each_lease_has_a_higher_fence(queue: JobQueue, leases: Leases) -> None:
    await submit(queue)
    first = await leased(leases)
    await leases.give_back(first)
    second = await leased(leases)
    assert second.id == first.id
    assert second.fence > first.fence


async def test_concurrent_leases_never_share_a_job(queue: JobQueue, cell: Cell) -> None:
    submitted = {(await submit(queue)).id for _ in range(20)}
    replicas = [Leases(cell, "demo-wan", f"r{i}") for i in range(30)]
    got = await asyncio.gather(*(replica.lease(LEASE_MS) for replica in replicas))
    ids = [lease.job.id for lease in got if lease]
    assert sorted(ids) == sorted(submitted)


# Running.


async def test_a_heartbeat_records_progress_and_renews(queue: JobQueue, leases: Leases) -> None:
    await submit(queue)
    job = await leased(leases, lease_ms=1000)
    await leases.heartbeat(job, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=3, remaining_ms=40)
    now = await queue.get(job.id, user="ann")
    assert (now.phase, now.step, now.remaining_ms, now.progress) == (Phase.DENOISE, 3, 40, 75)
    assert now.lease_until_ms > job.lease_until_ms


async def test_a_finished_job_has_its_result(queue: JobQueue, leases: Leases) -> None:
    await submit(queue)
    job = await leased(leases)
    await leases.complete(job, {"artifacts": {"video": {"key": "k"}}})
    done = await queue.get(job.id, user="ann")
    assert (done.state, done.progress) == (State.COMPLETED, 100)
    assert done.result == {"artifacts": {"video": {"key": "k"}}}
    assert done.expires_ms > done.finished_ms >= done.started_ms >= done.created_ms


async def test_finishing_again_after_a_lost_answer_is_fine(queue: JobQueue, leases: Leases) -> None:
    await submit(queue)
    job = await leased(leases)
    await leases.complete(job, {"a": 1})
    await leases.complete(job, {"a": 1})
    with pytest.raises(StaleLease):
        await leases.complete(job, {"a": 2})
    assert (await queue.pools(["demo-wan"]))["demo-wan"].ended == {State.COMPLETED: 1}


async def test_a_failed_job_says_why(queue: JobQueue, leases: Leases) -> None:
    await submit(queue)
    await leases.fail(job := await leased(leases), ModelFailed("it broke"))
    failed = await queue.get(job.id, user="ann")
    assert failed.state is State.FAILED
    assert failed.error == {"code": "model_failed", "message": "it broke"}


async def test_a_yield_keeps_the_place_and_is_no_attempt(queue: JobQueue, leases: Leases) -> None:
    first, second = await submit(queue), await submit(queue)
    await leases.give_back(await leased(leases))
    again = await leased(leases)
    assert (again.id, again.attempts) == (first.id, 1)
    assert (await leased(leases)).id == second.id


async def test_a_checkpoint_is_where_the_next_lease_goes_on(
    queue: JobQueue, leases: Leases
) -> None:
    await submit(queue)
    job = await leased(leases)
    assert await leases.checkpoint(job, "a", 1, 800) == ""
    assert await leases.checkpoint(job, "b", 2, 600) == "a"
    assert await leases.checkpoint(job, "b", 2, 600) == "", "repeated after a lost answer"
    assert await leases.checkpoint(job, "late", 1, 800) == "late", (
        "an older one does not replace it"
    )
    await leases.give_back(job)
    again = await leased(leases)
    assert (again.checkpoint, again.checkpoint_step, again.step) == ("b", 2, 2)
    with pytest.raises(StaleLease):
        await leases.checkpoint(job, "c", 3, 400)
    await leases.resumed(again)
    await leases.refused(again, CheckpointCorrupt("bad"))
    now = await queue.get(job.id, user="ann")
    assert (now.checkpoint, now.checkpoint_step, now.step) == ("", 0, 0)
    counts = (await queue.pools(["demo-wan"]))["demo-wan"].counts
    assert counts == {"yielded": 1, "resumed": 1, "checkpoint_corrupt": 1}


# Losing.


async def test_a_lapsed_lease_returns_the_job_to_its_place_and_its_fence_is_stale(
    queue: JobQueue, leases: Leases, cell: Cell
) -> None:
    first, second = await submit(queue), await submit(queue)
    stale = await leased(leases, lease_ms=1)
    await asyncio.sleep(0.01)
    again = await leased(Leases(cell, "demo-wan", "r2"))
    assert (again.id, again.attempts, again.replica) == (first.id, 2, "r2")
    assert (await leased(leases)).id == second.id
    # Everything the lost run still tries changes nothing.
    for write in (
        leases.heartbeat(stale, lease_ms=9, phase=Phase.DENOISE, step=1, remaining_ms=1),
        leases.checkpoint(stale, "x", 1, 800),
        leases.resumed(stale),
        leases.complete(stale, {}),
        leases.fail(stale, ModelFailed("late")),
        leases.give_back(stale),
    ):
        with pytest.raises(StaleLease):
            await write
    assert await queue.get(first.id, user="ann") == again


async def test_a_job_that_loses_every_replica_fails_and_the_next_runs(
    queue: JobQueue, leases: Leases
) -> None:
    poison, healthy = await submit(queue), await submit(queue)
    for _ in range(3):
        assert (await leased(leases, lease_ms=1)).id == poison.id
        await asyncio.sleep(0.01)
    assert (await leased(leases)).id == healthy.id
    failed = await queue.get(poison.id, user="ann")
    assert (failed.state, failed.error["code"]) == (State.FAILED, "replica_lost")


async def test_tidying_reaps_without_any_replica(
    queue: JobQueue, leases: Leases, upkeep: Upkeep
) -> None:
    job = await submit(queue)
    await leased(leases, lease_ms=1)
    await asyncio.sleep(0.01)
    await upkeep.tidy()
    assert await state_of(queue, job.id) is State.QUEUED


async def test_leases_outlive_a_redis_that_was_away(
    queue: JobQueue, leases: Leases, upkeep: Upkeep, redis: Redis, cell: Cell
) -> None:
    job = await submit(queue)
    await upkeep.tidy()
    running = await leased(leases, lease_ms=200)
    await asyncio.sleep(0.3)
    # As if nobody had spoken for ten seconds, of which the lease has lapsed for a tenth of one.
    await redis.decrby(cell.key("seen"), 10_000)
    await upkeep.tidy()
    assert await state_of(queue, job.id) is State.IN_PROGRESS
    longer = await queue.get(job.id, user="ann")
    assert 10_000 <= longer.lease_until_ms - running.lease_until_ms < 12_000
    # Whoever speaks first finds the silence, also one with other news.
    await redis.decrby(cell.key("seen"), 10_000)
    await leases.announce(host="a", pid=1, slots=1, free=0, age_ms=0)
    again = await queue.get(job.id, user="ann")
    assert again.lease_until_ms - longer.lease_until_ms >= 10_000
    # Once: then it lapses like any other.
    await leases.heartbeat(running, lease_ms=200, phase=Phase.DENOISE, step=1, remaining_ms=1)
    await asyncio.sleep(0.3)
    await upkeep.tidy()
    assert await state_of(queue, job.id) is State.QUEUED


async def test_a_job_that_ran_and_came_back_does_not_expire(
    cell: Cell, queue: JobQueue, leases: Leases
) -> None:
    job = await submit(queue)
    await leases.give_back(await leased(leases))
    await asyncio.sleep(1.1)
    await Upkeep(cell, JobSettings(queue_ttl_s=1)).tidy()
    assert await state_of(queue, job.id) is State.QUEUED


async def test_a_stack_that_starts_takes_every_lease_back(
    queue: JobQueue, leases: Leases, upkeep: Upkeep
) -> None:
    jobs = [await submit(queue) for _ in range(2)]
    stale = await leased(leases)
    assert await upkeep.recover() == 1
    assert (await leased(leases)).id == jobs[0].id
    with pytest.raises(StaleLease):
        await leases.complete(stale, {})


# Ending.


async def test_cancelling_a_queued_job_ends_it(queue: JobQueue, leases: Leases) -> None:
    job = await submit(queue)
    cancelled = await queue.cancel(job.id, user="ann")
    assert (cancelled.state, cancelled.error["code"]) == (State.CANCELLED, "cancelled")
    assert await leases.lease(LEASE_MS) is None


async def test_cancelling_a_running_job_makes_its_fence_stale_and_tells_the_replica(
    queue: JobQueue, leases: Leases
) -> None:
    await submit(queue)
    job = await leased(leases)
    async with leases.signals() as signals:
        assert (await queue.cancel(job.id, user="ann")).state is State.CANCELLED
        assert await signals.next(timeout_s=5) == Drop(job.id, job.fence)
    with pytest.raises(StaleLease):
        await leases.complete(job, {})


async def test_cancelling_twice_or_too_late_changes_nothing(
    queue: JobQueue, leases: Leases
) -> None:
    job = await submit(queue)
    once = await queue.cancel(job.id, user="ann")
    assert await queue.cancel(job.id, user="ann") == once
    await submit(queue)
    done = await leased(leases)
    await leases.complete(done, {})
    assert (await queue.cancel(done.id, user="ann")).state is State.COMPLETED


async def test_a_deleted_job_is_gone_for_its_owner_and_its_replica(
    queue: JobQueue, leases: Leases, upkeep: Upkeep
) -> None:
    await submit(queue)
    job = await leased(leases)
    await queue.delete(job.id, user="ann")
    with pytest.raises(NotFound):
        await queue.get(job.id, user="ann")
    with pytest.raises(StaleLease):
        await leases.heartbeat(job, lease_ms=9, phase=Phase.DECODE, step=1, remaining_ms=1)
    assert (await queue.list("ann", limit=10)).jobs == []
    assert (await queue.pools(["demo-wan"]))["demo-wan"].ended == {State.CANCELLED: 1}
    assert await upkeep.garbage(10) == [job.id]


async def test_a_job_that_waited_too_long_expires(
    cell: Cell, queue: JobQueue, leases: Leases
) -> None:
    jobs = [await submit(queue) for _ in range(2)]
    await asyncio.sleep(1.1)
    fresh = await submit(queue)
    await Upkeep(cell, JobSettings(queue_ttl_s=1)).tidy()
    expired = await queue.get(jobs[0].id, user="ann")
    assert (expired.state, expired.error["code"]) == (State.EXPIRED, "expired")
    assert await state_of(queue, jobs[1].id) is State.EXPIRED
    assert (await leased(leases)).id == fresh.id


async def test_an_ended_job_is_forgotten_with_everything_about_it(
    cell: Cell, redis: Redis, leases: Leases
) -> None:
    limits = JobSettings(retention_s=1, garbage_s=0)
    queue, upkeep = JobQueue(cell, limits), Upkeep(cell, limits)
    await submit(queue)
    pools = {f"{name}:demo-wan" for name in ("ended", "backlog", "fair", "times")}
    empty = {"schema", "seq", "fence", "pools", "seen", "garbage", *pools}
    job = await leased(leases)
    await leases.complete(job, {})
    assert await upkeep.tidy() == 0
    await asyncio.sleep(1.1)
    assert await upkeep.tidy() == 1
    assert await queue.find(job.id) is None
    assert await upkeep.garbage(10) == [job.id]
    left = {str(key).removeprefix(f"{cell.name}:") for key in await redis.keys("*")}
    # Strings with a time-out of their own.
    assert left - empty == {f"gone:{job.id}", "last_lease:r1"}
    assert 0 < await redis.ttl(cell.key("gone", job.id)) <= 3600
    await upkeep.removed(job.id)
    assert await upkeep.garbage(10) == []


# Looking.


async def test_another_users_job_is_not_found(queue: JobQueue) -> None:
    job = await submit(queue)
    for attempt in (queue.get, queue.cancel, queue.delete):
        with pytest.raises(NotFound):
            await attempt(job.id, user="bob")
    assert await state_of(queue, job.id) is State.QUEUED


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


async def test_a_preview_is_the_last_attempts_until_the_job_ends(
    queue: JobQueue, leases: Leases
) -> None:
    async def shown() -> tuple[str, int]:
        found = await queue.get(first.id, user="ann")
        return found.preview, found.preview_step

    first = await submit(queue)
    assert await shown() == ("", 0)
    before = await leased(leases)
    await leases.preview(before, "a", 2)
    await leases.give_back(before)
    await leases.preview(before, "a", 3)  # it was on its way
    assert await shown() == ("a", 3)
    after = await leased(leases)
    with pytest.raises(StaleLease):
        await leases.preview(before, "a", 4)
    assert await shown() == ("a", 3)
    await leases.preview(after, "b", 4)
    assert await shown() == ("b", 4)
    await leases.complete(after, {})
    with pytest.raises(StaleLease):
        await leases.preview(after, "b", 5)
    assert await shown() == ("", 0)
    with pytest.raises(StaleLease):
        await leases.preview(replace(after, id="video_gone"), "b", 5)


async def test_pool_counts(queue: JobQueue, leases: Leases) -> None:
    for _ in range(3):
        await submit(queue)
    await leases.complete(await leased(leases), {})
    await leased(leases)
    await asyncio.sleep(0.02)
    pool = (await queue.pools(["demo-wan", "idle"]))["demo-wan"]
    assert (pool.queued, pool.in_progress, pool.ended) == (1, 1, {State.COMPLETED: 1})
    assert 10 < pool.oldest_ms < 10_000
    assert (await queue.pools(["idle"]))["idle"].oldest_ms == 0


async def test_replicas_are_listed_oldest_first_until_they_leave_or_fall_silent(
    queue: JobQueue, cell: Cell, redis: Redis, upkeep: Upkeep
) -> None:
    old, new = Leases(cell, "demo-wan", "old"), Leases(cell, "demo-wan", "new")
    await new.announce(host="b", pid=2, slots=4, free=3, age_ms=10)
    await old.announce(host="a", pid=1, slots=4, free=4, age_ms=60_000)
    await old.announce(host="a", pid=1, slots=4, free=1, age_ms=60_000)
    replicas = (await queue.pools(["demo-wan"]))["demo-wan"].replicas
    assert [(r.id, r.host, r.pid, r.slots, r.free) for r in replicas] == [
        ("old", "a", 1, 4, 1),
        ("new", "b", 2, 4, 3),
    ]
    assert [round(r.age_s) for r in replicas] == [60, 0]
    assert 0 < await redis.pttl(cell.key("replica", "old")) <= 10_000
    await new.retire()
    await redis.delete(cell.key("replica", "old"))  # as its time-out does
    assert (await queue.pools(["demo-wan"]))["demo-wan"].replicas == []
    await upkeep.tidy()
    assert await redis.zcard(cell.key("replicas", "demo-wan")) == 0


# Signals and failures.


async def test_a_submission_wakes_a_listener(queue: JobQueue, leases: Leases) -> None:
    async with leases.signals() as signals:
        waiting = asyncio.create_task(signals.next(timeout_s=30))
        await asyncio.sleep(0)
        job = await submit(queue)
        wake = await asyncio.wait_for(waiting, 5)
    assert isinstance(wake, Wake)
    assert wake.job == Contender(job.created_ms, 1000, 1000, seat=1)
    assert wake.now_ms == job.created_ms


async def test_scripts_survive_a_redis_that_forgot_them(
    queue: JobQueue, leases: Leases, redis: Redis
) -> None:
    await submit(queue)
    await redis.script_flush()
    assert await leased(leases)


async def test_a_redis_of_another_schema_is_refused(cell: Cell, redis: Redis) -> None:
    await cell.check_schema()
    await cell.check_schema()
    await redis.set(cell.key("schema"), "0")
    with pytest.raises(ConfigError, match="schema 0"):
        await cell.check_schema()
    # One that holds jobs and says nothing is from before there were schemas.
    await redis.delete(cell.key("schema"))
    await redis.set(cell.key("seq"), 1)
    with pytest.raises(ConfigError, match="schema None"):
        await cell.check_schema()


async def test_a_defect_of_a_script_is_not_taken_for_an_outage(cell: Cell, redis: Redis) -> None:
    await redis.set(cell.key("job", "video_x"), "no hash")
    with pytest.raises(ResponseError):
        await cell.run("submit", "video_x", "ann", "p", "p", "{}", "s", 1, 1, 10, 1000)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ServiceUnavailable):
            await submit(JobQueue(cell))
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_redis_that_is_away_is_unavailable() -> None:
    away: Redis = Redis(port=1, decode_responses=True)
    with pytest.raises(ServiceUnavailable):
        await submit(JobQueue(Cell(away)))


async def test_acknowledged_jobs_survive_a_killed_redis(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    client: Redis = Redis.from_url(server.start(), decode_responses=True)
    queue, leases = JobQueue(Cell(client)), Leases(Cell(client), "demo-wan", "r1")
    jobs = [await submit(queue) for _ in range(20)]
    running = await leased(leases)
    os.kill(server.pid, signal.SIGKILL)
    await client.aclose()
    server.stop()
    client = Redis.from_url(server.start(), decode_responses=True)
    queue, leases = JobQueue(Cell(client)), Leases(Cell(client), "demo-wan", "r1")
    assert [await queue.get(job.id, user="ann") for job in jobs[1:]] == jobs[1:]
    await leases.complete(running, {})
    assert (await leased(leases)).id == jobs[1].id
    await client.aclose()
    server.stop()
