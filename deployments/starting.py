"""A replica that loads its weights says so: whoever scales counts it already, and knows how long
that takes and whether it fails.

The constructor of a replica blocks its event loop, so a thread does this, with a loop of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.connections import open_redis
from deployments.settings import StackSettings
from serving.jobs import Cell, Leases, ReplicaStatus
from serving.plan.errors import ConfigError, ServiceUnavailable

log = logging.getLogger(__name__)

ANNOUNCE_S = 2.0
LEAVE_S = 30.0
"""For the last word, while Redis is away; then the replica's silence says it."""


def process_age_s() -> float:
    """For how long this process has lived: what a replica needed before its constructor ran is part
    of its start. Elsewhere than on Linux, nothing."""
    if sys.platform != "linux":
        return 0.0
    # Fields from the third on, behind the name, which may have blanks in it: the 22nd is when it
    # began, in ticks since the machine did.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS)


_TICKS = os.sysconf("SC_CLK_TCK") if sys.platform == "linux" else 100


@contextmanager
def starting(settings: StackSettings, pool: str, replica: str, device: str = "") -> Iterator[None]:
    """Announce that ``replica`` starts while the block runs, and if it raises, that it failed.

    That it is ready, it says itself with its first announcement as a worker. A Redis that is away
    delays nothing: then nobody knows of the start.
    """
    announcer = _Announcer(settings, pool, replica, device)
    announcer.start()
    try:
        yield
    except BaseException as error:
        announcer.failed = type(error).__name__
        raise
    finally:
        announcer.over.set()
        announcer.join(LEAVE_S)


class _Announcer(threading.Thread):
    def __init__(self, settings: StackSettings, pool: str, replica: str, device: str) -> None:
        super().__init__(name="starting", daemon=True)
        self._settings = settings
        self._me = pool, replica
        self._device = device
        self.over = threading.Event()
        self.failed = ""

    def run(self) -> None:
        try:
            asyncio.run(self._announce())
        except ConfigError as error:  # the worker will say so, and fail for it
            log.warning("cannot announce that %s starts: %s", self._me[1], error)

    async def _announce(self) -> None:
        redis = open_redis(self._settings)
        try:
            cell = Cell(redis)
            leases = Leases(cell, *self._me)
            heard = await self._say(cell, leases)
            while not await asyncio.to_thread(self.over.wait, ANNOUNCE_S):
                heard = await self._say(cell, leases)
            # It counts only if the start is known.
            if self.failed and (heard or await self._say(cell, leases)):
                await leases.start_failed(self.failed)
        except ServiceUnavailable as error:
            log.warning("cannot announce that %s does not start: %s", self._me[1], error)
        finally:
            await redis.aclose()

    async def _say(self, cell: Cell, leases: Leases) -> bool:
        """Whether it was heard."""
        try:
            await cell.check_schema()
            await leases.announce(
                host=socket.gethostname(),
                pid=os.getpid(),
                slots=0,
                free=0,
                age_ms=round(1000 * process_age_s()),
                device=self._device,
                state=ReplicaStatus.STARTING,
            )
        except ServiceUnavailable as error:
            log.warning("cannot announce that %s starts: %s", self._me[1], error)
            return False
        return True
