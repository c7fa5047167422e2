"""The stack keeps an audit copy of its own ledger, a second or so behind."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from redis.asyncio import Redis

from quota.follower import AuditCopy
from quota.pages import PAGE, read_page
from serving.jobs import Cell
from serving.plan.errors import ReelserveError, ServiceUnavailable

log = logging.getLogger(__name__)

FOLLOW_S = 1.0
STOP_S_MAX = 10.0
REDIS_TIMEOUT_S = 5.0


class Follower:
    """A thread that copies entries into ``file``. It never ends by itself: a Redis that is away is
    waited for, and any other problem is told once to ``notice`` and tried again."""

    def __init__(
        self, redis_url: str, file: Path, notice: Callable[[str], None], every_s: float = FOLLOW_S
    ) -> None:
        self._redis_url, self._file = redis_url, file
        self._notice, self._every_s = notice, every_s
        self._noticed = ""
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="audit-copy", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Copy what is left to copy, and end."""
        self._stopped.set()
        self._thread.join(STOP_S_MAX)

    def _run(self) -> None:
        while True:
            last = self._stopped.is_set()
            try:
                self._follow_until_trouble()
            except ServiceUnavailable:
                pass
            except (ReelserveError, sqlite3.Error, OSError) as error:
                self._tell(f"the audit copy of the ledger does not follow: {error}")
            except Exception as error:  # whatever it is, the stack goes on
                log.exception("the audit copy")
                self._tell(f"the audit copy of the ledger does not follow: {error!r}")
            if last:
                return
            self._stopped.wait(self._every_s)

    def _tell(self, problem: str) -> None:
        if problem != self._noticed:
            self._noticed = problem
            self._notice(problem)

    def _follow_until_trouble(self) -> None:
        """Or until it is to stop, and everything is copied."""
        copy = AuditCopy(self._file)
        try:
            while True:
                last = self._stopped.is_set()
                asyncio.run(self._catch_up(copy))
                self._noticed = ""
                if last:
                    return
                self._stopped.wait(self._every_s)
        finally:
            copy.close()

    async def _catch_up(self, copy: AuditCopy) -> None:
        redis: Redis = Redis.from_url(
            self._redis_url, decode_responses=True, socket_timeout=REDIS_TIMEOUT_S
        )
        try:
            cell, more = Cell(redis), True
            while more:
                after = copy.last
                page = await read_page(cell, after.id if after else None)
                more = copy.append(after, page) == PAGE
        finally:
            await redis.aclose()
