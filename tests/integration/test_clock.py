"""A clock that jumps: what Redis says the time is, and what the queue makes of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from serving.plan.errors import ConfigError
from tests.clock import Clock

HOUR_S = 3600
DAY_S = 24 * HOUR_S


@pytest.fixture(scope="session")
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    """The server under test is one whose clock can be moved."""
    return moved_redis_server[0]


async def is_off_by(redis: Redis, offset_s: float) -> bool:
    """Whether Redis is so far ahead of the true time; asked in a script, as production does."""
    before_s = time.time()
    seconds, micros = await redis.eval("return redis.call('TIME')", 0)
    return before_s - 1e-5 <= int(seconds) + int(micros) / 1e6 - offset_s <= time.time() + 1e-5


@pytest.mark.asyncio
@pytest.mark.parametrize("offset_s", [-HOUR_S, DAY_S, 0.25, -0.25, -DAY_S - 0.001])
async def test_time_in_a_script_is_off_by_what_was_set(
    redis: Redis, clock: Clock, offset_s: float
) -> None:
    clock.set(offset_s)
    assert await is_off_by(redis, offset_s)


@pytest.mark.asyncio
async def test_jumps_add_up(redis: Redis, clock: Clock) -> None:
    clock.jump(DAY_S)
    clock.jump(-HOUR_S)
    assert await is_off_by(redis, DAY_S - HOUR_S)


@pytest.mark.asyncio
async def test_redis_goes_on_serving_and_expiring_while_its_clock_jumps(
    redis: Redis, clock: Clock
) -> None:
    for number, offset_s in enumerate([DAY_S, -DAY_S, HOUR_S, -HOUR_S] * 5):
        clock.set(offset_s)
        assert await redis.incr("served") == number + 1
    clock.set(0)
    await redis.set("short", "x", px=50)
    await redis.set("long", "x", ex=2 * HOUR_S)
    async with redis.client() as own:
        assert await own.blpop(["nothing"], timeout=0.1) is None, "its own timers go on"
    assert not await redis.exists("short")
    clock.set(DAY_S)
    assert not await redis.exists("long")


def test_a_restart_loads_what_was_written_at_other_times(
    moved_redis_server: tuple[RedisServer, Clock], clock: Clock
) -> None:
    server = moved_redis_server[0]
    with BlockingRedis.from_url(server.url) as client:
        client.flushall()
        for number, offset_s in enumerate([0, -HOUR_S, DAY_S, -DAY_S]):
            clock.set(offset_s)
            client.set(f"key{number}", number)
    server.stop()
    server.start()
    with BlockingRedis.from_url(server.url) as client:
        assert [client.get(f"key{number}") for number in range(4)] == [b"0", b"1", b"2", b"3"]
        assert client.time()[0] < time.time() - DAY_S + HOUR_S, "and the offset still holds"


def test_a_server_without_an_offset_to_map_does_not_start_in_secret(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    lost = {**clock.environment, "REELSERVE_TEST_CLOCK": str(tmp_path / "nothing")}
    with pytest.raises(ConfigError, match="REELSERVE_TEST_CLOCK"):
        RedisServer(tmp_path / "redis", environment=lost).start()
