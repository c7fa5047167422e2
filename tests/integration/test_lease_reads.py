"""What a lease reads, counted by Redis: few hashes of jobs, and no line again that is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from serving.jobs import Cell, Job, JobQueue, Leases, Resident, Room, Rows
from tests.jobs import LEASE_MS, leased, submit
from tests.queue_state import check, read_state

pytestmark = pytest.mark.asyncio

MANY = 12
"""Tenants of whom each line's head is looked at, and no more."""


def beside(run: Job) -> Room:
    """A slot is free beside this run, and its forward has room for one more of its shape."""
    return Room(
        free=1,
        runs=[Resident(run.id, run.fence, run.left_device_ms, 10, denoises=True)],
        shapes={run.spec.shape: Rows(2 * run.spec.rows, 2 * run.spec.rows)},
    )


async def counted(
    redis: Redis, leases: Leases, room: Room, *commands: str
) -> tuple[str, list[int]]:
    """Which job a lease got, and how often it gave each of these commands."""
    await redis.config_resetstat()
    lease = await leases.lease(LEASE_MS, room)
    stats = await redis.info("commandstats")
    assert lease is not None
    return lease.job.id, [stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in commands]


async def everyone(queue: JobQueue, users: Sequence[str], **changes: Any) -> list[Job]:
    """A job of each, the later ones with more work."""
    return [
        await submit(queue, user=user, est_device_ms=5000 + n, **changes)
        for n, user in enumerate(users)
    ]


async def test_a_busy_replica_reads_no_hash_of_a_job_that_cannot_join(
    cell: Cell, leases: Leases, redis: Redis
) -> None:
    queue, read = JobQueue(cell), []
    await widened(queue, leases)
    for others in (1, 8):
        await submit(queue, user="runs", est_device_ms=1000)
        run = await leased(leases)
        # They rank before the one that fits, and behind the one that runs.
        await everyone(queue, [f"user{n}" for n in range(others)], render_width=192)
        fits = await submit(queue, user="fits", est_device_ms=9000)
        got, calls = await counted(redis, leases, beside(run), "hmget", "hgetall")
        assert got == fits.id
        read.append(calls)
        for job in [run, *[await leased(leases) for _ in range(others)]]:
            await leases.complete(job, {})
        check(await read_state(redis))
    assert read[0] == read[1]


async def widened(queue: JobQueue, leases: Leases) -> None:
    """The window becomes as wide as this job: all tenants are looked at."""
    await submit(queue, user="long", est_device_ms=100_000)
    await leases.complete(await leased(leases), {})


async def whose_lines_are_read(cell: Cell, leases: Leases) -> tuple[str, list[str]]:
    """Who was leased a job, and of whom a line was read for it, once for each line."""
    start = cell.key("line") + ":"
    read: list[str] = []
    async with cell.redis.monitor() as told:
        job = await leased(leases)
        await cell.redis.echo("that was all")
        async for each in told.listen():
            name, *words = each["command"].split(" ")
            if name == "ECHO":
                return job.user, sorted(read)
            if name == "ZRANGE" and words[0].startswith(start):
                read.append(words[0].split(":")[-2])
    raise AssertionError("Redis told of no end")


async def test_the_lines_of_many_tenants_are_read_once(cell: Cell, leases: Leases) -> None:
    queue = JobQueue(cell)
    await widened(queue, leases)
    users = [f"user{n:02}" for n in range(MANY)]
    await everyone(queue, users)
    # A second one of each, which ranks behind the first of all however long the calls took.
    for user in users:
        await submit(queue, user=user, est_device_ms=50_000)
    # Both lines of each; then those of whoever was leased a job before, and nobody else's.
    assert await whose_lines_are_read(cell, leases) == (users[0], sorted(2 * users))
    assert await whose_lines_are_read(cell, leases) == (users[1], 2 * users[:1])
    assert await whose_lines_are_read(cell, leases) == (users[2], 2 * users[1:2])
    check(await read_state(cell.redis))


async def test_the_lines_of_a_tenant_of_whom_nothing_waits_any_more_are_not_read(
    cell: Cell, leases: Leases
) -> None:
    queue = JobQueue(cell)
    await widened(queue, leases)
    users = [f"user{n:02}" for n in range(MANY + 1)]
    await everyone(queue, users)
    assert await whose_lines_are_read(cell, leases) == (users[0], sorted(2 * users))
    assert await whose_lines_are_read(cell, leases) == (users[1], [])


async def test_a_job_that_comes_or_goes_counts_at_the_next_lease(
    cell: Cell, leases: Leases, redis: Redis
) -> None:
    queue = JobQueue(cell)
    await widened(queue, leases)
    users = [f"user{n}" for n in range(MANY)]
    jobs = await everyone(queue, users)
    run = await leased(leases)
    assert run.id == jobs[0].id
    kept = await redis.keys(cell.key("heads", "*"))
    assert len(kept) == MANY - 1
    sooner = await submit(queue, user=users[5], est_device_ms=10)
    await queue.cancel(jobs[1].id, user=users[1])
    check(await read_state(redis))
    assert (await leased(leases)).id == sooner.id
    assert (await leased(leases)).id == jobs[2].id
    # One that comes back is looked at again too.
    await leases.give_back(run)
    check(await read_state(redis))
    assert (await leased(leases)).id == run.id
    for job in jobs[3:]:
        await queue.cancel(job.id, user=job.user)
    assert await redis.keys(cell.key("heads", "*")) == []
