"""A log that was cut anywhere, as by a power cut: Redis refuses it, or what is there is right."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deployments.aof import log_files, record_ends
from deployments.redis_server import CONFIG, DamagedLog, RedisServer
from quota.redis_ledger import RedisLedger
from serving.jobs import Cell
from tests import tools
from tests.busy_cell import BusyCell, check_whole

RANDOM_BYTES = {False: 200, True: 50}
"""By whether the log was rewritten."""
AT_ONCE = 3


@dataclass
class Written:
    """A log, and the ids of the entries that are in it."""

    folder: Path
    server: str
    rewritten: bool
    entries: list[str]

    @property
    def last(self) -> Path:
        return log_files(self.folder)[-1]


@pytest.fixture(scope="module", params=["6.2", "6.2 rewritten", "7", "7 rewritten"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """By a busy cell; rewritten by Redis half way, or not."""
    version, *rewritten = request.param.split()
    return asyncio.run(write_log(tmp_path_factory.mktemp("log"), version, bool(rewritten)))


async def write_log(folder: Path, version: str, rewritten: bool) -> Written:
    server = RedisServer(folder, str(tools.redis_servers()[version].path))
    redis: Redis = Redis.from_url(server.start(), decode_responses=True)
    busy = BusyCell(redis)
    await busy.begin()
    if rewritten:
        await redis.bgrewriteaof()
        while (await redis.info("persistence"))["aof_rewrite_in_progress"]:
            await asyncio.sleep(0.01)
    await busy.go_on()
    await check_whole(redis)
    entries = [entry.id for entry in await busy.ledger.entries()]
    await redis.aclose()
    server.stop()
    return Written(folder, str(tools.redis_servers()[version].path), rewritten, entries)


def boundaries(file: Path) -> tuple[list[int], set[int]]:
    """Where a cut leaves whole records, and where it leaves whole transactions as well."""
    log = file.read_bytes()
    start = log.find(b"*2\r\n$6\r\nSELECT\r\n") if log.startswith(b"REDIS") else 0
    ends, whole, within = [start], {start}, False
    for end, command in record_ends(log[start:]):
        ends.append(start + end)
        within = command == b"MULTI" or (within and command != b"EXEC")
        if not within:
            whole.add(start + end)
    assert ends[-1] == len(log)
    return ends, whole


async def recovered(written: Written, folder: Path, cut: int) -> int:
    """How many entries a server recovers from the log cut there, all that must hold holding."""
    shutil.copytree(written.folder, folder)
    os.truncate(log_files(folder)[-1], cut)
    server = RedisServer(folder, written.server)
    redis: Redis = Redis.from_url(await asyncio.to_thread(server.start), decode_responses=True)
    try:
        await check_whole(redis)
        entries = [entry.id for entry in await RedisLedger(Cell(redis)).entries()]
        assert entries == written.entries[: len(entries)]
        return len(entries)
    finally:
        await redis.aclose()
        await asyncio.to_thread(server.stop)


def refusals(written: Written, folder: Path, cuts: Sequence[int]) -> dict[str, int]:
    """What a server says that refuses the log, without its numbers, and one of the cuts of which it
    says that. One that goes on is an error.

    It is started as bare as can be, and for all cuts on the same files, of which more and more is
    cut: a log that is refused stays as it is.
    """
    shutil.copytree(written.folder, folder)
    log, config = log_files(folder)[-1], folder / "redis.conf"
    config.write_text(CONFIG.format(port=0, password="-", folder=folder))
    said = {}
    for cut in sorted(cuts, reverse=True):
        os.truncate(log, cut)
        (folder / "redis.log").unlink(missing_ok=True)
        run = subprocess.run([written.server, config], timeout=60)
        assert run.returncode == 1, cut
        assert log.stat().st_size == cut
        said[re.sub(r"\d+", "0", (folder / "redis.log").read_text())] = cut
    return said


@pytest.mark.timeout(900)
def test_a_log_cut_anywhere_is_refused_or_what_it_says_holds(
    written: Written, tmp_path: Path
) -> None:
    ends, whole = boundaries(written.last)
    size = written.last.stat().st_size
    chance = random.Random(size)  # noqa: S311
    cuts = {*ends, *(chance.randrange(size) for _ in range(RANDOM_BYTES[written.rewritten]))}
    found: dict[int, int] = {}

    async def all_that_are_whole() -> None:
        some = asyncio.Semaphore(AT_ONCE)

        async def one(cut: int) -> None:
            async with some:
                folder = tmp_path / str(cut) / "redis"
                found[cut] = await recovered(written, folder, cut)
                shutil.rmtree(folder)

        async with asyncio.TaskGroup() as group:
            for cut in sorted(whole):
                group.create_task(one(cut))

    asyncio.run(all_that_are_whole())
    counts = [found[cut] for cut in sorted(whole)]
    assert counts == sorted(counts)
    assert counts[-1] == len(written.entries)

    # What becomes of a refusal depends on what the server says, and on nothing else.
    for number, cut in enumerate(refusals(written, tmp_path / "torn", list(cuts - whole)).values()):
        folder = tmp_path / f"told {number}" / "redis"
        shutil.copytree(written.folder, folder)
        os.truncate(log_files(folder)[-1], cut)
        with pytest.raises(DamagedLog, match="reelserve repair --data-dir"):
            RedisServer(folder, written.server).start()
