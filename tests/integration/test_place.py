"""Where a job stands, with classes and tenants, against the order in which leases are granted."""

from __future__ import annotations

import random
import statistics
from functools import partial

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from serving.jobs import Cell, Job, JobQueue, JobSettings, Leases, Limits
from serving.plan.classes import ServiceClass
from serving.plan.errors import InsufficientQuota
from tests.clock import Clock
from tests.jobs import LEASE_MS, spec, submit

pytestmark = pytest.mark.asyncio

SETTINGS = JobSettings(queue_max=10_000)


@pytest.fixture
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    return moved_redis_server[0]


async def crowd(queue: JobQueue, draw: random.Random, jobs: int, tenants: int) -> list[Job]:
    """Jobs of all classes, so long that no time passes between their leases."""
    return [
        await submit(
            queue,
            user=f"u{draw.randrange(tenants)}",
            est_device_ms=draw.randrange(10**6, 10**7),
            limits=Limits(inside=draw.choice(list(ServiceClass))),
        )
        for _ in range(jobs)
    ]


async def leased_in_turn(leases: Leases, clock: Clock, most: int = 10**6) -> list[Job]:
    """The jobs, as one replica gets them that runs one at a time as long as estimated."""
    order: list[Job] = []
    while len(order) < most and (lease := await leases.lease(LEASE_MS)):
        order.append(lease.job)
        await leases.complete(lease.job, {}, spent_ms=lease.job.est_device_ms)
        clock.jump(lease.job.est_device_ms / 1000)
    return order


@pytest.mark.parametrize("seed", range(6))
async def test_a_place_in_a_short_queue_is_the_turn_it_comes_to(
    cell: Cell, clock: Clock, seed: int
) -> None:
    queue, draw = JobQueue(cell, SETTINGS), random.Random(seed)  # noqa: S311
    leases = Leases(cell, "demo-wan", "r1", SETTINGS)
    jobs = await crowd(queue, draw, 12, tenants=4)
    # Counters, credits and windows that have moved.
    gone = {job.id for job in await leased_in_turn(leases, clock, most=5)}
    jobs = [job for job in jobs if job.id not in gone]
    jobs += await crowd(queue, draw, 40, tenants=1 + 3 * seed)
    places = {job.id: await queue.place(job) for job in jobs}
    order = await leased_in_turn(leases, clock)
    before_ms = 0
    for turn, job in enumerate(order):
        assert (places[job.id].ahead, places[job.id].ahead_ms) == (turn, before_ms)
        before_ms += job.est_device_ms


@pytest.mark.parametrize("tenants", [1, 10, 100])
async def test_a_place_in_a_long_queue_is_about_the_turn_it_comes_to(
    cell: Cell, clock: Clock, tenants: int
) -> None:
    queue, draw = JobQueue(cell, SETTINGS), random.Random(tenants)  # noqa: S311
    leases = Leases(cell, "demo-wan", "r1", SETTINGS)
    jobs = await crowd(queue, draw, 400, tenants)
    places = {job.id: await queue.place(job) for job in jobs}
    order = await leased_in_turn(leases, clock)
    off = [abs(places[job.id].ahead - turn) for turn, job in enumerate(order)]
    total_ms = sum(job.est_device_ms for job in order)
    before_ms, off_ms = 0, []
    for job in order:
        off_ms.append(abs(places[job.id].ahead_ms - before_ms))
        before_ms += job.est_device_ms
    assert statistics.fmean(off) < 0.1 * len(order)
    assert statistics.fmean(off_ms) < 0.1 * total_ms


@pytest.mark.parametrize("jobs", [30, 200])
async def test_a_job_that_would_be_submitted_has_the_place_it_then_gets(
    cell: Cell, clock: Clock, jobs: int
) -> None:
    queue, draw = JobQueue(cell, SETTINGS), random.Random(jobs)  # noqa: S311
    await crowd(queue, draw, jobs, tenants=8)
    await leased_in_turn(Leases(cell, "demo-wan", "r1", SETTINGS), clock, most=3)
    for user in ("u1", "somebody new"):
        for service_class in ServiceClass:
            est_device_ms = draw.randrange(10**6, 10**7)
            asked = "demo-wan", user, service_class, est_device_ms
            foreseen = await queue.place_of_new(*asked)
            limits = Limits(inside=service_class)
            job = await submit(queue, user=user, est_device_ms=est_device_ms, limits=limits)
            place = await queue.place(job)
            # In a long queue the mean of all that wait, itself included, is part of it.
            assert place.ahead == pytest.approx(foreseen.ahead, abs=0 if jobs < 48 else 2)
            assert place.ahead_ms == pytest.approx(foreseen.ahead_ms, rel=0 if jobs < 48 else 0.02)
            await queue.delete(job.id, user=user)


async def test_a_dry_submission_says_what_would_become_of_it_and_writes_nothing(
    cell: Cell, redis: Redis
) -> None:
    queue = JobQueue(cell, SETTINGS)
    day = 86_400_000
    limits = Limits(generations=1, requests_per_minute=2, days_ms=[0, day], beyond="refuse")
    ask = partial(
        queue.submit, user="ann", alias="a", spec=spec(), est_device_ms=1000, limits=limits
    )
    for _ in range(5):
        admission = await ask("", dry=True)
        assert admission.job
        assert admission.job.service_class is ServiceClass.STANDARD
        assert (admission.allowance.generations_used, admission.allowance.requests_left) == (0, 2)
    assert await redis.keys(f"{cell.name}:used:*") == []
    await ask("video_1")
    for _ in range(5):
        with pytest.raises(InsufficientQuota):
            await ask("", dry=True)
    assert (await queue.pools(["demo-wan"]))["demo-wan"].queued == 1
    with pytest.raises(InsufficientQuota):
        await ask("video_2")
