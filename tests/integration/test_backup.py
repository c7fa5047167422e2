"""A cell's Redis is backed up while it works, destroyed, and made again, by the real scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import Cell, State
from tests import tools
from tests.busy_cell import BusyCell, check_whole
from tests.tools import ROOT

pytestmark = pytest.mark.asyncio

USERS = ("ann", "bob")


def script(name: str, *arguments: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{tools.TOOLS / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "scripts" / name, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
        timeout=60,
    )


def run(name: str, *arguments: Path, **environment: str) -> str:
    done = script(name, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path / "redis", str(tools.redis_servers()["7"].path))


@pytest_asyncio.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    client: Redis = Redis.from_url(server.start(), decode_responses=True)
    yield client
    await client.aclose()
    server.stop()


async def contents(redis: Redis) -> Mapping[Any, Any]:
    return {key: await redis.dump(key) for key in await redis.keys()}


async def test_a_cell_that_was_destroyed_is_what_it_was_when_it_was_backed_up(
    server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    # Given a cell at work, of which a backup was taken
    busy = BusyCell(redis)
    await busy.begin()
    await busy.submit("waits")
    raw: Redis = Redis.from_url(server.url)
    before = await contents(raw)
    balances = {user: await busy.ledger.balance(user) for user in USERS}
    said = run("redis-backup", tmp_path / "backup.rdb", REELSERVE_REDIS_URL=server.url)
    assert "bytes in" in said
    # and which went on, until its disk was gone,
    await busy.go_on()
    await raw.aclose()
    server.stop()
    shutil.rmtree(tmp_path / "redis")
    # when it is restored,
    said = run("redis-restore", tmp_path / "backup.rdb", tmp_path / "redis")
    assert said == f"{len(before)} keys in {tmp_path / 'redis'}\n"
    # then every key is there again, from a log that Redis itself finds no fault with,
    server.start()
    raw = Redis.from_url(server.url)
    assert await contents(raw) == before
    await raw.aclose()
    again: Redis = Redis.from_url(server.url, decode_responses=True)
    ledger = RedisLedger(Cell(again))
    assert (await verify(ledger.cell)).differences == []
    assert {user: await ledger.balance(user) for user in USERS} == balances
    # and work goes on: the job that waited is leased, made and paid for.
    restored = BusyCell(again)
    assert (await restored.queue.get("waits", user="ann")).state is State.QUEUED
    await restored.work()
    assert (await restored.queue.get("waits", user="ann")).state is State.COMPLETED
    await check_whole(again)
    await again.aclose()


async def test_what_is_no_whole_backup_is_refused(
    server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    await BusyCell(redis).begin()
    backup = tmp_path / "backup.rdb"
    run("redis-backup", backup, REELSERVE_REDIS_URL=server.url)
    backup.write_bytes(backup.read_bytes()[:-200])
    done = script("redis-restore", backup, tmp_path / "restored")
    assert done.returncode != 0
    assert "cannot load it" in done.stderr


async def test_a_folder_that_holds_anything_is_not_restored_into(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").touch()
    done = script("redis-restore", tmp_path / "backup.rdb", tmp_path / "redis")
    assert done.returncode != 0


async def test_a_redis_that_is_away_leaves_no_backup(tmp_path: Path) -> None:
    gone = "redis://:secret@127.0.0.1:1/0"
    done = script("redis-backup", tmp_path / "backup.rdb", REELSERVE_REDIS_URL=gone)
    assert done.returncode != 0
    assert os.listdir(tmp_path) == []
