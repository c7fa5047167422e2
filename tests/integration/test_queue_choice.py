"""Which job a replica gets: by rank, where it fits, in whose place, on every supported Redis."""

from __future__ import annotations

import asyncio
import random

import pytest
from redis.asyncio import Redis

from serving.jobs import (
    Cell,
    Job,
    JobQueue,
    JobSettings,
    Lease,
    Leases,
    Phase,
    Resident,
    Room,
    Rows,
    State,
)
from serving.plan.errors import CheckpointCorrupt
from serving.plan.rank import Contender, urgency
from tests.jobs import LEASE_MS, SHARES, leased, submit

pytestmark = pytest.mark.asyncio

LONG_MS = 100_000
NEVER_MS = 10**15
"""Later than any clock of a test shows."""
LIMITS = JobSettings(quantum_s=0)
PREEMPTED_AT_MOST = 2


def replica(cell: Cell, name: str, settings: JobSettings = LIMITS) -> Leases:
    return Leases(cell, "demo-wan", name, settings)


def room(*jobs: Job, free: int = 1, cheap: int = 0, most: int = 0, denoises: bool = True) -> Room:
    """Beside these jobs, which have all their steps left."""
    return Room(
        free=free,
        runs=[Resident(job.id, job.fence, job.est_device_ms, 10, denoises) for job in jobs],
        shapes={job.spec.shape: Rows(cheap, most) for job in jobs},
    )


async def idle(*replicas: Leases) -> None:
    for each in replicas:
        await each.announce(host="h", pid=1, slots=2, free=2, age_ms=0)


async def got(leases: Leases, room: Room) -> str | None:
    lease = await leases.lease(LEASE_MS, room)
    return lease.job.id if lease else None


async def just_queued(cell: Cell, job: Job) -> None:
    """It stays one that is still left to a replica that would do better."""
    await cell.redis.hset(cell.key("job", job.id), "queued_ms", NEVER_MS)


async def queued_long_ago(cell: Cell, job: Job) -> None:
    await cell.redis.hset(cell.key("job", job.id), "queued_ms", 0)


async def preempting(leases: Leases, room: Room) -> Lease:
    lease = await leases.lease(LEASE_MS, room)
    assert lease is not None
    assert lease.preempts is not None
    return lease


# By rank.


async def test_the_least_work_goes_first_and_equals_go_by_age(
    queue: JobQueue, leases: Leases
) -> None:
    for name, ms in (("e", 3000), ("d", 1000), ("c", 2000), ("b", 1000), ("a", 1000)):
        await submit(queue, job_id=name, est_device_ms=ms)
    assert [(await leased(leases)).id for _ in range(5)] == ["d", "b", "a", "c", "e"]


async def test_a_long_job_goes_first_in_the_end(
    queue: JobQueue, leases: Leases, redis: Redis, cell: Cell
) -> None:
    old = await submit(queue, est_device_ms=2000)
    run = await leased(leases)
    # It was submitted long ago, as its return to the queue shows.
    await redis.hincrby(cell.key("job", old.id), "created_ms", -800_000)
    await leases.give_back(run)
    await submit(queue, est_device_ms=1000)
    assert (await leased(leases)).id == old.id


async def test_a_job_that_comes_back_counts_only_what_its_checkpoint_does_not_save(
    queue: JobQueue, leases: Leases
) -> None:
    long = await submit(queue, est_device_ms=10_000)
    job = await leased(leases)
    short = await submit(queue, est_device_ms=7000)
    await leases.checkpoint(job, "a", 3, 500)
    await leases.give_back(job)
    again = await leased(leases)
    assert (again.id, again.left_device_ms, again.remaining_ms) == (long.id, 500, 500)
    # A checkpoint that is refused saves nothing.
    await leases.refused(again, CheckpointCorrupt("x"))
    await leases.give_back(again)
    assert (await leased(leases)).id == short.id
    assert (await leased(leases)).left_device_ms == 10_000


async def test_a_place_counts_who_goes_before_as_things_stand(cell: Cell, leases: Leases) -> None:
    queue, draw = JobQueue(cell), random.Random(5)  # noqa: S311
    # Long enough that none of them gets late meanwhile.
    works = [draw.randrange(10**6, 10**7) for _ in range(100)]
    jobs = [await submit(queue, est_device_ms=ms) for ms in works]
    running = await leased(leases)
    jobs = sorted((job for job in jobs if job.id != running.id), key=_rank)
    for ahead, job in enumerate(jobs):
        place = await queue.place(job)
        assert place.ahead == ahead
        assert place.running_ms == [running.est_device_ms]
        assert place.ahead_ms == sum(each.est_device_ms for each in jobs[:ahead])
    gone = await queue.cancel(jobs[5].id, user="ann")
    assert (await queue.place(gone)).ahead == 0


async def test_a_place_in_a_long_queue_is_about_right(cell: Cell, redis: Redis) -> None:
    queue, draw = JobQueue(cell), random.Random(6)  # noqa: S311
    works = [draw.randrange(10**6, 10**7) for _ in range(700)]
    jobs = [await submit(queue, est_device_ms=ms) for ms in works]
    jobs.sort(key=lambda job: (job.left_device_ms, job.seq))
    for at in (128, 400, 699):
        await redis.config_resetstat()
        place = await queue.place(jobs[at])
        calls = await redis.info("commandstats")
        assert place.ahead == at
        before = sum(job.left_device_ms for job in jobs[:at])
        assert place.ahead_ms == pytest.approx(before, rel=0.1)
        assert sum(each["calls"] for each in calls.values()) < 30, "whoever waits polls"
    # They are long enough that their ranks are still the order of their work.
    places = [await queue.place(job) for job in jobs[126:130]]
    assert [place.ahead for place in places] == [126, 127, 128, 129]


async def test_a_run_that_is_only_stored_is_not_waited_for(queue: JobQueue, leases: Leases) -> None:
    await submit(queue)
    run = await leased(leases)
    job = await submit(queue)
    for phase, running_ms in ((Phase.DECODE, [500]), (Phase.STORE, [])):
        await leases.heartbeat(run, lease_ms=LEASE_MS, phase=phase, step=4, remaining_ms=500)
        assert (await queue.place(job)).running_ms == running_ms


def _rank(job: Job) -> tuple[float, int]:
    return urgency(
        Contender(job.created_ms, job.est_device_ms, job.left_device_ms), job.created_ms
    ) + 0.2 * job.created_ms, job.seq


async def test_a_lease_costs_the_same_however_long_the_queue(cell: Cell, redis: Redis) -> None:
    queue, busy, idler = JobQueue(cell), replica(cell, "busy"), replica(cell, "idle")
    run = await long_run(queue, busy)
    commands = []
    for waiting in (100, 2000):
        while (queued := await redis.zcard(cell.key("queued", "demo-wan"))) < waiting:
            batch = range(min(50, waiting - queued))
            await asyncio.gather(*(submit(queue, est_device_ms=LONG_MS + i) for i in batch))
        await idle(idler)
        await redis.config_resetstat()
        assert await got(busy, room(run, free=1)) is None
        assert await got(busy, room(run, free=0)) is None
        taken = await leased(idler)
        calls = await redis.info("commandstats")
        commands.append(sum(each["calls"] for each in calls.values()))
        await idler.complete(taken, {})
    # Each looks at 32 heads of two orders.
    assert max(commands) < 250


# Into a batch.


async def test_a_job_rides_along_at_once_where_that_costs_nothing(
    queue: JobQueue, cell: Cell
) -> None:
    busy, other = replica(cell, "busy"), replica(cell, "other")
    await submit(queue)
    run = await leased(busy)
    await idle(other)
    job = await submit(queue, est_device_ms=9000)
    assert await got(busy, room(run, cheap=3, most=3)) is None, "two rows and two do not fit"
    assert await got(busy, room(run, cheap=4, most=4)) == job.id


async def test_a_job_whose_ride_costs_something_is_left_to_an_idle_replica_for_a_moment(
    queue: JobQueue, cell: Cell
) -> None:
    busy, other = replica(cell, "busy"), replica(cell, "other")
    await submit(queue)
    run = await leased(busy)
    await idle(other)
    job = await submit(queue, est_device_ms=9000)
    await just_queued(cell, job)
    beside = room(run, cheap=2, most=4)
    assert await got(busy, beside) is None
    await queued_long_ago(cell, job)
    assert await got(busy, beside) == job.id, "the other one does not come"
    job = await submit(queue, est_device_ms=9000)
    await just_queued(cell, job)
    await other.announce(host="h", pid=1, slots=2, free=1, age_ms=0)
    assert await got(busy, beside) == job.id, "the other one is busy"


async def test_what_could_neither_ride_nor_lead_stays_for_the_first_replica_that_is_free(
    queue: JobQueue, cell: Cell
) -> None:
    busy = replica(cell, "busy")
    await submit(queue, est_device_ms=5000)
    run = await leased(busy)
    beside = room(run, cheap=8, most=8)
    wide = await submit(queue, est_device_ms=6000, render_width=128)
    assert await got(busy, beside) is None
    rider = await submit(queue, est_device_ms=9000)
    assert await got(busy, beside) == rider.id
    leader = await submit(queue, est_device_ms=4000, render_width=128)
    assert await got(busy, beside) == leader.id
    assert await got(busy, room()) == wide.id


async def test_one_that_only_decodes_keeps_nobody_out(queue: JobQueue, cell: Cell) -> None:
    busy = replica(cell, "busy")
    await submit(queue)
    run = await leased(busy)
    job = await submit(queue, est_device_ms=9000)
    assert await got(busy, room(run)) is None
    assert await got(busy, room(run, denoises=False)) == job.id


# In the place of another.


async def long_run(queue: JobQueue, leases: Leases) -> Job:
    await submit(queue, est_device_ms=LONG_MS)
    job = await leased(leases)
    await leases.heartbeat(
        job, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=1, remaining_ms=LONG_MS
    )
    return job


async def test_a_short_job_takes_the_place_of_a_long_one_in_one_swap(
    queue: JobQueue, leases: Leases, cell: Cell
) -> None:
    full = replica(cell, "r1")
    victim = await long_run(queue, full)
    short = await submit(queue)
    lease = await preempting(full, room(victim, free=0))
    assert (lease.job.id, lease.preempts) == (short.id, (victim.id, victim.fence))
    # The victim is still the replica's, until it has stopped it and hands it back.
    await full.checkpoint(victim, "a", 2, LONG_MS // 2)
    await full.give_back(victim, holding=True)
    again = await queue.get(victim.id, user="ann")
    assert (again.state, again.preempted, again.attempts) == (State.QUEUED, 1, 0)
    assert (await queue.pools(["demo-wan"]))["demo-wan"].counts == {"preempted": 1, "yielded": 1}


async def test_a_swap_whose_answer_was_lost_is_the_same_swap(queue: JobQueue, cell: Cell) -> None:
    full = replica(cell, "r1")
    victim = await long_run(queue, full)
    await submit(queue)
    await submit(queue)
    args = ("demo-wan", "r1", LEASE_MS, "token", 3, "", room(victim, free=0).to_json(0, SHARES))
    first = await cell.run("lease", *args)
    assert first
    assert (await cell.run("lease", *args))[1:] == first[1:]
    now = await queue.get(victim.id, user="ann")
    assert (now.preempted, now.state) == (1, State.IN_PROGRESS)


async def test_a_swap_whose_answer_was_lost_and_whose_winner_went_is_undone(
    queue: JobQueue, cell: Cell
) -> None:
    full = replica(cell, "r1")
    victim = await long_run(queue, full)
    winner = await submit(queue)
    args = ("demo-wan", "r1", LEASE_MS, "token", 3, "", room(victim, free=0).to_json(0, SHARES))
    assert await cell.run("lease", *args)
    await queue.cancel(winner.id, user="ann")
    for _ in range(2):
        assert await cell.run("lease", *args) == []
        assert (await queue.get(victim.id, user="ann")).preempted == 0
    # It is not on its way out, so its place can be taken.
    await submit(queue)
    assert (await preempting(full, room(victim, free=0))).preempts == (victim.id, victim.fence)


async def test_a_run_keeps_its_place_for_its_quantum(queue: JobQueue, cell: Cell) -> None:
    full = replica(cell, "r1", JobSettings(quantum_s=60))
    victim = await long_run(queue, full)
    await submit(queue)
    assert await got(full, room(victim, free=0)) is None
    await cell.redis.hincrby(cell.key("job", victim.id), "leased_ms", -60_000)
    await preempting(full, room(victim, free=0))


async def test_a_job_is_preempted_at_most_twice(queue: JobQueue, cell: Cell) -> None:
    full = replica(cell, "r1")
    victim = await long_run(queue, full)
    for _ in range(PREEMPTED_AT_MOST):
        await submit(queue)
        winner = (await preempting(full, room(victim, free=0))).job
        await full.give_back(victim)
        await full.complete(winner, {})
        victim = await leased(full)
    await submit(queue)
    assert await got(full, room(victim, free=0)) is None


async def test_no_swap_that_helps_nobody(queue: JobQueue, cell: Cell) -> None:
    full, other = replica(cell, "r1"), replica(cell, "r2")
    victim = await long_run(queue, full)
    job = await submit(queue, est_device_ms=LONG_MS)
    assert await got(full, room(victim, free=0)) is None, "it does not rank before"
    await queue.cancel(job.id, user="ann")
    job = await submit(queue)
    await just_queued(cell, job)
    assert await got(full, room(victim, free=0, denoises=False)) is None, "it is almost done"
    await idle(other)
    assert await got(full, room(victim, free=0)) is None, "another one is idle"
    await other.announce(host="h", pid=1, slots=2, free=1, age_ms=0)
    # Another slot of the pool will be free in time.
    soon = await submit(queue, render_width=128)
    run = await leased(other)
    await other.heartbeat(run, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=1, remaining_ms=500)
    assert await got(full, room(victim, free=0)) is None
    await other.complete(run, {})
    await preempting(full, room(victim, free=0))
    # Its place is taken already, so no third one gets it.
    await submit(queue)
    assert await got(full, room(victim, free=0)) is None
    assert soon.id != victim.id


async def test_a_run_that_is_only_stored_frees_no_slot(queue: JobQueue, cell: Cell) -> None:
    full, other = replica(cell, "r1"), replica(cell, "r2")
    victim = await long_run(queue, full)
    await submit(queue)
    run = await leased(other)
    await submit(queue)
    for phase in (Phase.DECODE, Phase.STORE):
        assert await got(full, room(victim, free=0)) is None
        await other.heartbeat(run, lease_ms=LEASE_MS, phase=phase, step=4, remaining_ms=500)
    await preempting(full, room(victim, free=0))


async def test_the_winner_must_lead_or_ride_beside_those_who_stay(
    queue: JobQueue, cell: Cell
) -> None:
    full = replica(cell, "r1")
    await submit(queue, est_device_ms=500)
    leader = await leased(full)
    # It has little work left, and gets on slowly.
    await full.heartbeat(
        leader, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=1, remaining_ms=LONG_MS
    )
    victim = await long_run(queue, full)
    await submit(queue, render_width=128)
    beside = room(leader, victim, free=0, cheap=4, most=4)
    assert await got(full, beside) is None
    rider = await submit(queue)
    lease = await preempting(full, beside)
    assert (lease.job.id, lease.preempts) == (rider.id, (victim.id, victim.fence))


async def test_a_full_replica_whose_run_was_cancelled_waits_for_its_slot(
    queue: JobQueue, cell: Cell
) -> None:
    full = replica(cell, "r1")
    gone = await long_run(queue, full)
    victim = await long_run(queue, full)
    await queue.cancel(gone.id, user="ann")
    await submit(queue)
    assert await got(full, room(gone, victim, free=0)) is None


# Back to whoever has it in memory.


async def test_a_job_is_left_for_a_moment_to_the_replica_that_has_it_in_memory(
    queue: JobQueue, cell: Cell
) -> None:
    holder, other, busy = replica(cell, "holder"), replica(cell, "other"), replica(cell, "busy")
    await submit(queue, render_width=128)
    run = await leased(busy)
    job = await submit(queue)
    for taker in (holder, other):
        await holder.give_back(await leased(holder), holding=True)
        await just_queued(cell, job)
        await idle(holder, other)
        assert await got(other, room()) is None
        assert await got(busy, room(run)) is None
        if taker is other:
            await queued_long_ago(cell, job)
        assert await got(taker, room()) == job.id
        await taker.give_back(await queue.get(job.id, user="ann"))


async def test_an_idle_replica_does_not_wait_for_a_holder_that_is_busy(
    queue: JobQueue, cell: Cell
) -> None:
    holder, other = replica(cell, "holder"), replica(cell, "other")
    job = await submit(queue)
    await idle(holder, other)
    await holder.give_back(await leased(holder), holding=True)
    await just_queued(cell, job)
    assert await got(other, room()) == job.id


# To the oldest of those that are idle.


async def aged(each: Leases, age_ms: int) -> None:
    """It says that it is idle, and for how long it has been there."""
    await each.announce(host="h", pid=1, slots=2, free=2, age_ms=age_ms)


async def test_of_idle_replicas_the_oldest_gets_a_job(queue: JobQueue, cell: Cell) -> None:
    old, new = replica(cell, "old"), replica(cell, "new")
    await aged(new, age_ms=1000)
    await aged(old, age_ms=9000)
    job = await submit(queue)
    assert await got(new, room()) is None
    assert await got(old, room()) == job.id


async def test_each_older_idle_replica_is_left_one_job(queue: JobQueue, cell: Cell) -> None:
    old, middle, new = (replica(cell, name) for name in ("old", "middle", "new"))
    for each, age_ms in ((old, 9000), (middle, 5000), (new, 1000)):
        await aged(each, age_ms)
    first, second, third = [await submit(queue) for _ in range(3)]
    # What is left over is for the newest, whoever asks first.
    assert await got(new, room()) == third.id
    assert await got(middle, room()) == second.id
    assert await got(old, room()) == first.id


async def test_a_job_is_left_to_an_older_replica_for_a_moment_only(
    queue: JobQueue, cell: Cell
) -> None:
    old, new = replica(cell, "old"), replica(cell, "new")
    await aged(old, age_ms=9000)
    await aged(new, age_ms=1000)
    job = await submit(queue)
    assert await got(new, room()) is None
    # The older one died without a word.
    await queued_long_ago(cell, job)
    assert await got(new, room()) == job.id


async def test_an_older_replica_that_is_busy_is_not_waited_for(queue: JobQueue, cell: Cell) -> None:
    old, new = replica(cell, "old"), replica(cell, "new")
    await aged(old, age_ms=9000)
    await aged(new, age_ms=1000)
    await submit(queue)
    await leased(old)
    job = await submit(queue)
    assert await got(new, room()) == job.id


async def test_a_replica_goes_on_with_what_it_has_in_memory_though_an_older_one_is_idle(
    queue: JobQueue, cell: Cell
) -> None:
    old, new = replica(cell, "old"), replica(cell, "new")
    job = await submit(queue)
    await new.give_back(await leased(new), holding=True)
    await aged(old, age_ms=9000)
    await aged(new, age_ms=1000)
    await just_queued(cell, job)
    assert await got(new, room()) == job.id


# Alone.


async def lost(leases: Leases, job_id: str) -> None:
    """The replica that leased this job goes away."""
    lease = await leases.lease(0, Room())
    assert lease is not None
    assert lease.job.id == job_id


async def test_the_last_attempt_is_made_alone(queue: JobQueue, cell: Cell) -> None:
    ours, theirs, third = replica(cell, "ours"), replica(cell, "theirs"), replica(cell, "third")
    ours_runs = await submit(queue, job_id="a", est_device_ms=1000)
    assert await got(ours, Room()) == "a"
    theirs_runs = await submit(queue, job_id="b", est_device_ms=1000)
    assert await got(theirs, Room()) == "b"
    await submit(queue, job_id="suspect", est_device_ms=100)
    for _ in range(2):
        await lost(third, "suspect")
    await submit(queue, job_id="c", est_device_ms=1000)
    mine = await queue.get(ours_runs.id, user="ann")
    other = await queue.get(theirs_runs.id, user="ann")
    # Its turn comes first here, so nobody joins any more; one replica is enough for that.
    assert await got(ours, room(mine, cheap=16, most=16)) is None
    assert await got(theirs, room(other, cheap=16, most=16)) == "c"
    assert await got(ours, Room(delivering=1)) is None
    await ours.complete(mine, {})
    assert await got(ours, Room()) == "suspect"


async def test_a_full_replica_does_not_empty_for_a_job_that_runs_alone(
    queue: JobQueue, cell: Cell, redis: Redis
) -> None:
    full, roomy, third = replica(cell, "full"), replica(cell, "roomy"), replica(cell, "third")
    long, other = await long_run(queue, full), await long_run(queue, roomy)
    await submit(queue, job_id="suspect")
    for _ in range(2):
        await lost(third, "suspect")
    await submit(queue, est_device_ms=2000)
    assert await got(full, room(long, free=0)) is None
    assert await got(roomy, room(other, cheap=16, most=16)) is None
    assert str(await redis.get(cell.key("emptying", "demo-wan"))).startswith("roomy ")
    await roomy.complete(other, {})
    assert await got(roomy, Room()) == "suspect"
