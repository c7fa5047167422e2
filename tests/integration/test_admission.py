"""The waterfall of a submission, table by table: class and payer, rate, allowance, day, surge."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.tiers import Tier, Tiers
from serving.jobs import Cell, Job, JobQueue, JobSettings, Leases, Limits, Phase, Upkeep, Wish
from serving.plan.classes import CLASSES, ServiceClass, ServiceTier
from serving.plan.errors import InsufficientQuota, ModelFailed, RateLimited, TooManyQueued
from tests.clock import Clock
from tests.jobs import LEASE_MS, leased, spec, submit
from tests.queue_state import check, read_state

pytestmark = pytest.mark.asyncio

MANY = JobSettings(queue_max=1000)
HOUR_S, DAY_S = 3600, 86_400
NUMBERS = itertools.count()
BURST, STANDARD, RELAXED = CLASSES


@pytest.fixture(scope="session")
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    return moved_redis_server[0]


@pytest.fixture
def queue(cell: Cell) -> JobQueue:
    return JobQueue(cell, MANY)


@pytest.fixture
def leases(cell: Cell) -> Leases:
    return Leases(cell, "demo-wan", "r1", MANY)


async def now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def days(redis: Redis, zone: str = "UTC", off_s: float = 0) -> list[int]:
    """As an ingress has them whose clock is off by so much."""
    tiers = Tiers(default_tier="x", time_zone=zone, tiers={"x": Tier()})
    return tiers.days_ms(await now_ms(redis) + round(1000 * off_s))


async def set_time(redis: Redis, clock: Clock, local: datetime) -> None:
    clock.jump(local.timestamp() - await now_ms(redis) / 1000)


async def used(redis: Redis, user: str = "ann") -> tuple[int, int]:
    found = (await read_state(redis)).hashes[f"used:{user}"]
    return int(found["generations"]), int(found["gpu_ms"])


# Class and payer.

IN_CLASS_PAID = {
    # service tier: what becomes of it inside an allowance of class burst, standard, relaxed
    "auto": ("burst allowance", "standard allowance", "relaxed allowance"),
    "priority": ("burst allowance", "priority", "priority"),
    "default": ("standard allowance", "standard allowance", "relaxed allowance"),
    "flex": ("relaxed allowance", "relaxed allowance", "relaxed allowance"),
}
BEYOND = {
    # service tier: what becomes of it beyond the allowance: relaxed, credits (of which nobody has
    # any yet), refuse
    "auto": ("relaxed relaxed", "generations", "generations"),
    "priority": ("generations", "generations", "generations"),
    "default": ("generations", "generations", "generations"),
    "flex": ("relaxed relaxed", "generations", "generations"),
}


async def outcome(queue: JobQueue, limits: Limits, wish: Wish | None = None) -> str:
    """The class and who pays, or what the refusal says is short."""
    try:
        job = await submit(queue, est_device_ms=1, limits=limits, wish=wish or Wish())
    except InsufficientQuota as refused:
        return refused.reason
    return f"{job.service_class} {job.paid_from}"


@pytest.mark.parametrize("service_tier", ServiceTier)
@pytest.mark.parametrize("beyond", ["relaxed", "credits", "refuse"])
async def test_class_and_payer_follow_the_table(
    queue: JobQueue, redis: Redis, service_tier: ServiceTier, beyond: str
) -> None:
    wish, today = Wish(service_tier=service_tier), await days(redis)
    for inside, expected in zip(CLASSES, IN_CLASS_PAID[service_tier], strict=True):
        limits = Limits(inside=inside, beyond=beyond, generations=100, days_ms=today)
        if service_tier is ServiceTier.FLEX and beyond == "relaxed":
            # Whoever may go there for nothing does not spend an allowance on it.
            expected = "relaxed relaxed"
        assert await outcome(queue, limits, wish) == expected
        none = Limits(inside=inside, beyond=beyond, generations=0, days_ms=today)
        column = ("relaxed", "credits", "refuse").index(beyond)
        assert await outcome(queue, none, wish) == BEYOND[service_tier][column]
    check(await read_state(redis))


async def test_what_is_not_paid_from_the_allowance_uses_none_of_it(
    queue: JobQueue, redis: Redis
) -> None:
    limits = Limits(generations=2, days_ms=await days(redis))
    flex = Wish(service_tier=ServiceTier.FLEX)
    for wish in (flex, Wish(), flex, Wish(), Wish(), flex):
        await submit(queue, limits=limits, wish=wish)
    assert await used(redis) == (2, 2000)


async def test_gpu_time_may_be_used_to_the_last_millisecond(
    queue: JobQueue, leases: Leases, redis: Redis
) -> None:
    limits = Limits(gpu_ms=3000, beyond="refuse", days_ms=await days(redis))
    await submit(queue, est_device_ms=1000, limits=limits)
    with pytest.raises(InsufficientQuota) as refused:
        await submit(queue, est_device_ms=2001, limits=limits)
    assert refused.value.reason == "gpu"
    await submit(queue, est_device_ms=2000, limits=limits)
    assert await used(redis) == (2, 3000)
    # One took less than estimated, and what it left is there again.
    await leases.complete(await leased(leases), {}, spent_ms=400)
    await submit(queue, est_device_ms=600, limits=limits)
    assert await used(redis) == (3, 3000)


async def test_waiting_jobs_of_every_class_count_and_running_ones_do_not(
    queue: JobQueue, leases: Leases
) -> None:
    bounds = [Limits(queued_jobs=3, inside=inside) for inside in CLASSES]
    for limits in bounds:
        await submit(queue, limits=limits)
    for limits in bounds:
        with pytest.raises(TooManyQueued):
            await submit(queue, limits=limits)
    await submit(queue, user="bob", limits=bounds[0])
    await leased(leases)
    await submit(queue, limits=bounds[0])
    with pytest.raises(TooManyQueued):
        await submit(queue, limits=bounds[0])


# Rate.


@pytest.mark.parametrize("per_minute", [1, 3, 4])
async def test_a_minutes_worth_at_once_and_then_one_each_period(
    queue: JobQueue, clock: Clock, per_minute: int
) -> None:
    limits, period_s = Limits(requests_per_minute=per_minute), 60 / per_minute
    waits_s: list[float | None] = []

    async def accepted(saved: int = 0) -> int:
        """How many until one is refused; each is told how many are left of those ``saved``."""
        for n in itertools.count():
            try:
                admission = await queue.submit(
                    f"video_{next(NUMBERS)}",
                    user="ann",
                    alias="sora-2",
                    spec=spec(),
                    est_device_ms=1000,
                    limits=limits,
                )
            except RateLimited as refused:
                waits_s.append(refused.retry_after_s)
                return n
            if saved:
                assert admission.allowance.requests_left == saved - n - 1
        raise AssertionError

    assert await accepted(per_minute) == per_minute
    assert await accepted() == 0, "what is refused is not paid for"
    for _ in range(3):
        clock.jump(period_s)
        assert await accepted() == 1
    clock.jump(3600)
    assert await accepted(per_minute) == per_minute, "more than a minute's worth is not saved up"
    assert all(wait_s and 0 < wait_s <= period_s for wait_s in waits_s)


async def test_refusals_for_another_reason_count_against_the_rate(queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=3, queued_jobs=1)
    await submit(queue, limits=limits)
    for _ in range(2):
        with pytest.raises(TooManyQueued):
            await submit(queue, limits=limits)
    with pytest.raises(RateLimited):
        await submit(queue, limits=limits)
    await submit(queue, user="bob", limits=limits)


# The day.

DAYS = [
    ("Europe/Berlin", datetime(2027, 6, 1), 24),
    ("Europe/Berlin", datetime(2027, 3, 28), 23),
    ("Europe/Berlin", datetime(2027, 10, 31), 25),
    ("America/Santiago", datetime(2027, 9, 5), 23),
    ("Asia/Kolkata", datetime(2027, 6, 1), 24),
    ("UTC", datetime(2027, 12, 31), 24),
]


@pytest.mark.parametrize(("zone", "day", "hours"), DAYS)
@pytest.mark.parametrize("off_s", [0, -20 * HOUR_S, 20 * HOUR_S])
async def test_an_allowance_lasts_from_midnight_to_midnight_however_long_that_is(
    queue: JobQueue, redis: Redis, clock: Clock, zone: str, day: datetime, hours: int, off_s: float
) -> None:
    """Though the clock of the ingress, of which the midnights come, is most of a day off."""
    noon = day.replace(hour=12, tzinfo=ZoneInfo(zone))
    await set_time(redis, clock, noon)
    limits = Limits(generations=2, beyond="refuse", days_ms=await days(redis, zone, off_s))
    await submit(queue, limits=limits)
    allowance = (await queue.usage("ann", limits)).allowance
    assert allowance.resets_ms is not None
    midnight_ms = allowance.resets_ms
    begun_ms = int((await read_state(redis)).hashes["used:ann"]["day"])
    assert (midnight_ms - begun_ms) / 1000 / HOUR_S == hours
    assert begun_ms < await now_ms(redis) < midnight_ms
    # Ten seconds before it ends, and right after.
    clock.jump((midnight_ms - await now_ms(redis)) / 1000 - 10)
    await submit(queue, limits=limits)
    with pytest.raises(InsufficientQuota) as refused:
        await submit(queue, limits=limits)
    assert 0 < (refused.value.retry_after_s or 0) <= 10
    clock.jump(10)
    await submit(queue, limits=limits)
    assert await used(redis) == (1, 1000)


# What comes back.

Ending = Callable[[JobQueue, Leases, Job], Awaitable[object]]


async def spend(leases: Leases, spent_ms: int) -> Job:
    job = await leased(leases)
    await leases.heartbeat(
        job,
        lease_ms=LEASE_MS,
        phase=Phase.DENOISE,
        step=1,
        remaining_ms=1,
        spent_ms=spent_ms,
    )
    return job


async def _completes(queue: JobQueue, leases: Leases, job: Job) -> None:
    await leases.complete(await leased(leases), {}, spent_ms=700)


async def _takes_longer(queue: JobQueue, leases: Leases, job: Job) -> None:
    await leases.complete(await leased(leases), {}, spent_ms=1500)


async def _fails(queue: JobQueue, leases: Leases, job: Job) -> None:
    await leases.fail(await spend(leases, 300), ModelFailed("x"), spent_ms=900)


async def _is_cancelled_while_it_waits(queue: JobQueue, leases: Leases, job: Job) -> None:
    await queue.cancel(job.id, user="ann")


async def _is_cancelled_while_it_runs(queue: JobQueue, leases: Leases, job: Job) -> None:
    await spend(leases, 300)
    await queue.cancel(job.id, user="ann")


async def _is_deleted_while_it_waits(queue: JobQueue, leases: Leases, job: Job) -> None:
    await queue.delete(job.id, user="ann")


async def _is_deleted_once_it_is_done(queue: JobQueue, leases: Leases, job: Job) -> None:
    await _completes(queue, leases, job)
    await queue.delete(job.id, user="ann")


async def _yields_and_completes(queue: JobQueue, leases: Leases, job: Job) -> None:
    run = await leased(leases)
    await leases.checkpoint(run, "c", 2, 600)
    await leases.give_back(run, spent_ms=400)
    await leases.complete(await leased(leases), {}, spent_ms=500)


ENDINGS: dict[Ending, tuple[int, int]] = {
    _completes: (1, 700),
    _takes_longer: (1, 1500),
    _fails: (0, 0),
    _is_cancelled_while_it_waits: (0, 0),
    _is_cancelled_while_it_runs: (1, 300),
    _is_deleted_while_it_waits: (0, 0),
    _is_deleted_once_it_is_done: (1, 700),
    _yields_and_completes: (1, 900),
}


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
async def test_what_a_job_did_not_use_is_there_again(
    queue: JobQueue, leases: Leases, redis: Redis, ending: Ending
) -> None:
    limits = Limits(generations=9, gpu_ms=9000, days_ms=await days(redis))
    job = await submit(queue, limits=limits)
    assert await used(redis) == (1, 1000)
    await ending(queue, leases, job)
    assert await used(redis) == ENDINGS[ending]
    usage = await queue.usage("ann", limits)
    found = usage.allowance.generations_used, usage.allowance.gpu_ms_used
    assert (found, usage.running, usage.queued) == (ENDINGS[ending], 0, 0)
    check(await read_state(redis))


async def test_a_job_that_nobody_ran_costs_nothing(
    queue: JobQueue, cell: Cell, redis: Redis, clock: Clock
) -> None:
    brief = JobSettings(queue_ttl_s=HOUR_S)
    await set_time(redis, clock, datetime(2027, 6, 1, 12, tzinfo=ZoneInfo("UTC")))
    await submit(queue, limits=Limits(generations=9, days_ms=await days(redis)))
    clock.jump(HOUR_S)
    await Upkeep(cell, brief).tidy()
    assert await used(redis) == (0, 0)


async def test_work_that_a_lost_replica_did_is_not_paid_for(
    queue: JobQueue, leases: Leases, cell: Cell, redis: Redis
) -> None:
    limits = Limits(generations=9, days_ms=await days(redis))
    await submit(queue, limits=limits)
    run = await spend(leases, 800)
    await leases.checkpoint(run, "c", 1, 750)
    await Upkeep(cell, MANY).recover()
    # A quarter is saved; the rest is done again.
    again = await leased(leases)
    assert (again.spent_ms, again.left_device_ms) == (250, 750)
    await leases.complete(again, {}, spent_ms=750)
    assert await used(redis) == (1, 1000)


async def test_a_job_that_loses_every_replica_costs_nothing(
    queue: JobQueue, leases: Leases, cell: Cell, redis: Redis
) -> None:
    job = await submit(queue, limits=Limits(generations=9, days_ms=await days(redis)))
    for _ in range(MANY.attempts_max):
        await spend(leases, 800)
        await Upkeep(cell, MANY).recover()
    assert (await queue.get(job.id, user="ann")).terminal
    assert await used(redis) == (0, 0)


async def test_what_ends_on_another_day_gives_that_day_nothing(
    queue: JobQueue, leases: Leases, redis: Redis, clock: Clock
) -> None:
    await set_time(redis, clock, datetime(2027, 6, 1, 12, tzinfo=ZoneInfo("UTC")))
    limits = Limits(generations=9, days_ms=await days(redis))
    old = await submit(queue, limits=limits)
    clock.jump(DAY_S)
    await submit(queue, limits=limits)
    assert await used(redis) == (1, 1000)
    await queue.cancel(old.id, user="ann")
    assert await used(redis) == (1, 1000)


# Surge.

SURGES = [
    # waiting in burst, standard and relaxed (ms); replicas; whether 10 s are exceeded
    ((0, 9990, 0), 0, False),
    ((0, 10_001, 0), 0, True),
    ((10_001, 0, 0), 1, True),
    ((6000, 6000, 0), 1, True),
    ((6000, 6000, 0), 2, False),
    ((0, 0, 500_000), 1, False),
]


@pytest.mark.parametrize(("backlog_ms", "replicas", "surges"), SURGES)
async def test_a_surge_is_more_work_than_is_done_in_time(
    queue: JobQueue,
    cell: Cell,
    redis: Redis,
    backlog_ms: tuple[int, ...],
    replicas: int,
    surges: bool,
) -> None:
    for n in range(replicas):
        replica = Leases(cell, "demo-wan", f"r{n}", MANY)
        await replica.announce(host="h", pid=1, slots=1, free=0, age_ms=0)
    for inside, ms in zip(CLASSES, backlog_ms, strict=True):
        if ms:
            await submit(queue, user="bob", est_device_ms=ms, limits=Limits(inside=inside))
    today = await days(redis)
    rules = Limits(
        inside=BURST,
        generations=9,
        days_ms=today,
        surge_generations=1,
        surge_inside=STANDARD,
        surge_ms=10_000,
    )
    usage = await queue.usage("ann", rules, [("demo-wan", 10_000), ("other", 10_000)])
    assert usage.surge == {"demo-wan": surges, "other": False}
    assert await outcome(queue, rules) == f"{STANDARD if surges else BURST} allowance"
    expected = "relaxed relaxed" if surges else "burst allowance"
    assert await outcome(queue, rules) == expected, "the smaller allowance holds"
    # Rules of which there is but one leave the other as it was.
    of_class = Limits(inside=BURST, surge_inside=RELAXED, surge_ms=10_000)
    assert await outcome(queue, of_class) == f"{RELAXED if surges else BURST} allowance"
    of_number = Limits(generations=9, days_ms=today, surge_generations=0, surge_ms=10_000)
    assert await outcome(queue, of_number) == (
        "relaxed relaxed" if surges else "standard allowance"
    )


async def test_a_surge_is_over_when_the_work_is_leased(queue: JobQueue, leases: Leases) -> None:
    rules = Limits(surge_inside=RELAXED, surge_ms=10_000)
    await submit(queue, user="bob", est_device_ms=20_000)
    assert (await submit(queue, limits=rules)).service_class is RELAXED
    await leased(leases)
    assert (await submit(queue, limits=rules)).service_class is ServiceClass.STANDARD
