"""A damaged log of the stack's own Redis: a copy is kept, its end is cut, what is left is checked.

Each step may be the last one before a kill: the log is not touched before the whole copy is on
disk, and doing it all again cuts no more than is still damaged.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from redis.asyncio import Redis

from deployments.aof import Scan, log_files, scan
from deployments.data_dir import AUDIT_COPY, REDIS, lock_data_dir
from deployments.redis_server import DamagedLog, RedisServer
from quota.follower import AuditCopy
from quota.ledger import Entry
from quota.pages import order, read_page
from quota.verify import verify
from serving.jobs import Cell, compare_holds
from serving.plan.errors import ConfigError

COPY_PREFIX = "redis-before-repair"


@dataclass(frozen=True)
class Found:
    """What is there: so many ``entries`` of the ledger, what is wrong with it or with the jobs it
    was for, and what was ``lost``: entries that only the audit copy has."""

    entries: int
    problems: Sequence[str]
    lost: Sequence[str]


class Repair:
    """Of one data directory, which is ours as long as this is open: use it in a ``with``.

    :class:`ConfigError` if a stack runs on it, there is no log, or it cannot be repaired.
    """

    def __init__(self, data_dir: Path, executable: str | None = None) -> None:
        self._data_dir = data_dir
        self._redis = data_dir / REDIS
        self._executable = executable
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        if not self._redis.is_dir():
            raise ConfigError(f"there is no Redis of ours in {self._data_dir}; see --data-dir")
        self._lock = lock_data_dir(self._data_dir)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._lock is not None  # noqa: S101
        self._lock.close()

    def examine(self) -> Scan | None:
        """The end of the log, if it is damaged; None if all of the log is whole."""
        self._server().check_version()
        files = log_files(self._redis)
        if not files:
            raise ConfigError(f"there is no log in {self._redis}")
        for file in files[:-1]:
            if not (before := scan(file)).whole:
                raise ConfigError(
                    f"{file} is damaged at byte {before.whole_bytes}, and {files[-1].name} "
                    "follows it. Nothing can be cut there: put a copy of all files in their place"
                )
        end = scan(files[-1])
        return None if end.whole else end

    def keep_copy(self) -> Path:
        """Copy Redis's whole folder next to it, on disk for good; where the copy is."""
        for left in self._data_dir.glob(f".{COPY_PREFIX}*"):  # by one that was killed
            shutil.rmtree(left)
        copy = self._data_dir / f"{COPY_PREFIX}{_stamp()}"
        unfinished = copy.with_name(f".{copy.name}")
        try:
            shutil.copytree(self._redis, unfinished)
            for path in [*unfinished.rglob("*"), unfinished]:
                _sync(path)
            unfinished.rename(copy)
            _sync(self._data_dir)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise ConfigError(f"nothing was changed: no copy could be made: {error}") from error
        return copy

    def cut(self, end: Scan) -> None:
        """Keep what is whole of the file, on disk for good."""
        os.truncate(end.file, end.whole_bytes)
        _sync(end.file)

    def check(self) -> Found:
        """Start Redis on the log, hold all it has against each other, and stop it.

        :class:`ConfigError` if Redis refuses what is whole of the log, or the audit copy is none.
        """
        server, file = self._server(), self._data_dir / AUDIT_COPY
        copy = AuditCopy(file) if file.exists() else None
        try:
            return asyncio.run(self._check(server.start(), copy))
        except DamagedLog as error:
            raise ConfigError(
                f"{error.why}\nAll records of the log are whole, and one of them is wrong: nothing "
                "can be cut. Put a copy of the log in its place"
            ) from error
        except sqlite3.Error as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error
        finally:
            server.stop()
            if copy is not None:
                copy.close()

    async def _check(self, url: str, copy: AuditCopy | None) -> Found:
        redis: Redis = Redis.from_url(url, decode_responses=True)
        try:
            cell = Cell(redis)
            books = await verify(cell)
            problems = [*books.differences, *await compare_holds(cell)]
            return Found(books.entries, problems, await _lost(cell, copy) if copy else [])
        finally:
            await redis.aclose()

    def set_aside(self) -> Path:
        """Keep an audit copy that has more than the ledger, where no follower writes to it; where
        it is then. The next stack begins a new one."""
        kept = self._data_dir / f"{AUDIT_COPY}{_stamp()}"
        (self._data_dir / AUDIT_COPY).rename(kept)
        _sync(self._data_dir)
        return kept

    def _server(self) -> RedisServer:
        holding = [self._lock.fileno()] if self._lock else []
        return RedisServer(self._redis, self._executable, holding)


async def _lost(cell: Cell, copy: AuditCopy) -> Sequence[str]:
    """The entries of the audit copy that the ledger does not have."""
    lost, after = [], None
    while copied := await copy.entries(after=after):
        async with cell.answers(), cell.redis.pipeline(transaction=False) as pipe:
            for entry in copied:
                pipe.xrange(cell.key("ledger"), entry.id, entry.id)
            found = await pipe.execute()
        archived = (await read_page(cell, None, 1)).archived
        for entry, rows in zip(copied, found, strict=True):
            kept = [Entry.from_fields(*row) for row in rows] == [entry]
            old = archived is not None and order(entry.id) <= order(archived.last)
            if not kept and not old:
                lost.append(_told(entry))
        after = copied[-1].id
    return lost


def _told(entry: Entry) -> str:
    moved = ", ".join(f"{account} {amount:+}" for account, amount in entry.postings.items())
    return f"entry {entry.id} ({entry.type} of {entry.user}: {moved}, in milli-credits)"


def _stamp() -> str:
    return time.strftime("-%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}"


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
