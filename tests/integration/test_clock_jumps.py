"""The clock of Redis is set back or forward in the middle of things: the queue goes on as before.

Every process of ours speaks to Redis each second or so, which is how it knows the time that was;
here somebody speaks before each jump. Real time passes only where something has to become due.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.ledger import EntryType, Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import Cell, JobQueue, JobSettings, Leases, Limits, Phase, State, Upkeep, Wish
from serving.plan.classes import ServiceTier
from serving.plan.errors import InsufficientCredits, InsufficientQuota, NotFound, RateLimited
from tests.clock import Clock
from tests.jobs import LEASE_MS, leased, submit, until

pytestmark = pytest.mark.asyncio

HOUR_S = 3600
DAY_S = 24 * HOUR_S
SHORT_MS = 400


@pytest.fixture(scope="session")
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    """The server under test is one whose clock can be moved."""
    return moved_redis_server[0]


@pytest.fixture
def limits() -> JobSettings:
    """An ended job is forgotten after a second."""
    return JobSettings(lease_s_min=1, retention_s=1, garbage_s=0)


class Time:
    """The clock as the stack lives with it."""

    def __init__(self, clock: Clock, upkeep: Upkeep) -> None:
        self._clock, self._upkeep = clock, upkeep

    async def jump(self, seconds: float) -> None:
        await self._upkeep.tidy()
        self._clock.jump(seconds)
        await self._upkeep.tidy()


@pytest.fixture
def time(clock: Clock, upkeep: Upkeep) -> Time:
    return Time(clock, upkeep)


@pytest.fixture
def other(cell: Cell, limits: JobSettings) -> Leases:
    return Leases(cell, "demo-wan", "r2", limits)


async def day_of(redis: Redis, *, began_s: float = HOUR_S / 2) -> Limits:
    """Two generations in a day that began so long ago, by the clock as it stands."""
    now_ms = 1000 * (await redis.time())[0]
    midnight_ms = now_ms - round(1000 * began_s)
    days_ms = [midnight_ms + 1000 * DAY_S * days for days in (-1, 0, 1, 2)]
    return Limits("free", generations=2, beyond="refuse", days_ms=days_ms)


async def lapses(leases: Leases) -> bool:
    """Whether a job that somebody else had leased is to be had."""
    return await leases.lease(LEASE_MS) is not None


JUMPS = [[-HOUR_S], [-HOUR_S, HOUR_S], [HOUR_S, -HOUR_S], [-HOUR_S, -HOUR_S], [DAY_S, -DAY_S]]


@pytest.mark.parametrize("jumps", JUMPS)
async def test_a_lease_is_kept_until_its_end_and_reaped_after_it(
    queue: JobQueue, leases: Leases, other: Leases, time: Time, jumps: list[int]
) -> None:
    await submit(queue)
    job = await leased(leases, LEASE_MS)
    for seconds in jumps:
        await time.jump(seconds)
        assert await other.lease(LEASE_MS) is None, "it has a minute left"
    await leases.heartbeat(job, lease_ms=SHORT_MS, phase=Phase.DENOISE, step=1, remaining_ms=1)
    await until(lambda: lapses(other), seconds=20)


async def test_a_lease_that_was_granted_before_an_hour_went_back_ends_on_time(
    queue: JobQueue, leases: Leases, other: Leases, time: Time
) -> None:
    await submit(queue)
    await leased(leases, SHORT_MS)
    await time.jump(-HOUR_S)
    await until(lambda: lapses(other), seconds=20)


@pytest.mark.parametrize("jumps", JUMPS)
async def test_nobody_is_locked_out_by_the_rate(
    queue: JobQueue, time: Time, jumps: list[int]
) -> None:
    fast = Limits("free", requests_per_minute=120)
    for _ in range(120):
        await submit(queue, limits=fast)

    async def accepted() -> bool:
        with suppress(RateLimited):
            await submit(queue, limits=fast)
            return True
        return False

    for seconds in jumps:
        await time.jump(seconds)
        allowance = (await queue.usage("ann", fast)).allowance
        assert allowance.requests_reset_ms <= 60_000
        await until(accepted, seconds=20)


@pytest.mark.parametrize("jumps", [[-HOUR_S], [-DAY_S], [-HOUR_S, HOUR_S], [-DAY_S, DAY_S]])
async def test_a_clock_set_back_opens_no_day_twice(
    redis: Redis, queue: JobQueue, leases: Leases, time: Time, jumps: list[int]
) -> None:
    """Also not the day before, where the clock says it is now."""
    limits = await day_of(redis)
    for _ in range(2):
        await submit(queue, limits=limits)
    for seconds in jumps:
        await time.jump(seconds)
        with pytest.raises(InsufficientQuota) as refused:
            await submit(queue, limits=limits)
        assert refused.value.retry_after_s == pytest.approx(DAY_S - HOUR_S / 2, abs=60)


async def test_a_day_forward_and_back_opens_one_day(
    redis: Redis, queue: JobQueue, leases: Leases, time: Time
) -> None:
    limits = await day_of(redis)
    for seconds in (0, DAY_S, -DAY_S, DAY_S, -HOUR_S, HOUR_S):
        await time.jump(seconds)
        with suppress(InsufficientQuota):
            for _ in range(3):
                await submit(queue, limits=limits)
    assert len((await queue.list("ann", limit=100)).jobs) == 2 * 2


async def test_older_jobs_go_first_whatever_the_clock_says(
    queue: JobQueue, leases: Leases, time: Time
) -> None:
    submitted = []
    for seconds in (0, -HOUR_S, -60, 30):
        await time.jump(seconds)
        submitted.append((await submit(queue)).id)
        await asyncio.sleep(0.01)
    assert [(await leased(leases)).id for _ in submitted] == submitted


async def test_created_and_done_are_in_order_over_a_jump(
    queue: JobQueue, leases: Leases, time: Time
) -> None:
    await submit(queue)
    job = await leased(leases)
    await time.jump(-HOUR_S)
    await leases.complete(job, {"file": "clip.mp4"})
    done = await queue.get(job.id, user="ann")
    assert done.created_ms <= done.started_ms <= done.finished_ms <= done.created_ms + LEASE_MS


@pytest.mark.parametrize("jumps", [[-HOUR_S], [HOUR_S, -HOUR_S]])
async def test_an_ended_job_is_forgotten_when_it_was_due(
    queue: JobQueue, leases: Leases, upkeep: Upkeep, time: Time, jumps: list[int]
) -> None:
    await submit(queue)
    job = await leased(leases)
    for seconds in jumps[:-1]:
        await time.jump(seconds)
    await leases.complete(job, {"file": "clip.mp4"})
    await time.jump(jumps[-1])
    await upkeep.tidy()
    assert (await queue.get(job.id, user="ann")).state is State.COMPLETED

    async def forgotten() -> bool:
        await upkeep.tidy()
        try:
            await queue.get(job.id, user="ann")
        except NotFound:
            return True
        return False

    await until(forgotten, seconds=20)


@pytest.mark.parametrize("jumps", [[-HOUR_S, HOUR_S], [-DAY_S, DAY_S]])
async def test_time_that_was_only_set_back_and_forth_did_not_pass(
    cell: Cell, queue: JobQueue, time: Time, jumps: list[int]
) -> None:
    impatient = Upkeep(cell, JobSettings(queue_ttl_s=HOUR_S // 2))
    job = await submit(queue)
    for seconds in jumps:
        await time.jump(seconds)
        await impatient.tidy()
        assert (await queue.get(job.id, user="ann")).state is State.QUEUED


async def test_an_hour_forward_counts_as_waited(cell: Cell, queue: JobQueue, time: Time) -> None:
    """Nobody can tell it from an hour in which Redis was away."""
    impatient = Upkeep(cell, JobSettings(queue_ttl_s=HOUR_S // 2))
    job = await submit(queue)
    await time.jump(HOUR_S)
    await impatient.tidy()
    assert (await queue.get(job.id, user="ann")).state is State.EXPIRED


async def test_credits_end_on_time_and_are_booked_by_upkeep(
    cell: Cell, queue: JobQueue, upkeep: Upkeep, clock: Clock
) -> None:
    ledger = RedisLedger(cell)
    in_an_hour_ms = 1000 * ((await cell.redis.time())[0] + HOUR_S)
    await ledger.grant("ann", ref="gift", amount=100, kind=Kind.PROMOTION, expires_ms=in_an_hour_ms)
    paid = Wish(ServiceTier.PRIORITY)
    job = await submit(queue, wish=paid, price=60)
    clock.jump(2 * HOUR_S)
    with pytest.raises(InsufficientCredits):
        await submit(queue, wish=paid, price=40)
    assert (await ledger.balance("ann")).grants == []
    await upkeep.tidy()
    await queue.cancel(job.id, user="ann")
    entries = await ledger.entries()
    assert [(entry.type, entry.postings.get("cell:expired")) for entry in entries] == [
        (EntryType.GRANT, None),
        (EntryType.HOLD, None),
        (EntryType.EXPIRY, 40),
        (EntryType.RELEASE, None),
        (EntryType.EXPIRY, 60),
    ]
    assert (await verify(cell)).differences == []
