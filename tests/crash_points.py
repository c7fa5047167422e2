"""A deed that is cut short after any command of it, and then done again."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from deployments.aof import log_files, scan
from deployments.redis_server import DamagedLog, RedisServer
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import Cell, JobQueue, JobSettings, Leases, Upkeep
from serving.plan.errors import ServiceUnavailable, StaleLease
from tests.dying import dying_after
from tests.queue_state import QueueState, check, read_state

POOL = "demo-wan"
BOUNDS = JobSettings(garbage_s=0)


@dataclass
class Actor:
    """A process, over a client of its own. One that is ``patient`` does again what got no
    answer."""

    redis: Redis
    patient: bool

    def __post_init__(self) -> None:
        cell = Cell(self.redis)
        self.cell, self.queue = cell, JobQueue(cell, BOUNDS)
        self.leases = Leases(cell, POOL, "r1", BOUNDS)
        self.upkeep, self.ledger = Upkeep(cell, BOUNDS), RedisLedger(cell)

    async def ask(self, call: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        if not self.patient:
            return await call(*args, **named)
        with suppress(ServiceUnavailable):
            return await call(*args, **named)
        # Whoever hears that a lease is over by now has nothing more to do for it.
        with suppress(StaleLease):
            return await call(*args, **named)


Deed = Callable[[Actor], Awaitable[None]]
Holds = Callable[[Actor, QueueState], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """A ``deed`` after what was ``before``, what ``holds`` once it is done, and what is ``sound``
    whatever became of it. ``recovers``: what was under way is taken back before it is done again,
    as by a stack that starts."""

    deed: Deed
    before: Deed
    holds: Holds
    sound: Callable[[QueueState], None] = check
    recovers: bool = False

    def __str__(self) -> str:
        return getattr(self.deed, "__name__", "")

    async def cut_short(self, redis: Redis, server: RedisServer, how: str, *, heard: bool) -> None:
        """After the first command, after the second, and so on. ``how``: the client ``dies``,
        ``is cut off`` and does again what it got no answer to, or ``kills`` the server."""
        healthy = Actor(redis, patient=False)
        if how == "kills":
            await _short_log(redis)  # which is read again each time
        for commands in itertools.count(1):
            await redis.flushall()
            await healthy.cell.check_schema()
            await self.before(healthy)
            await redis.script_flush()
            done = False
            async with dying_after(
                server,
                commands,
                heard=heard,
                recovers=how == "is cut off",
                kills=how == "kills",
            ) as dying:
                with suppress(ServiceUnavailable):
                    await self.deed(Actor(dying.redis, patient=how == "is cut off"))
                    done = True
            if dying.died and how == "kills":
                server.stop()  # it is dead already, and this waits until it is gone
                _start_again(server)
                await redis.connection_pool.disconnect()
            state = await read_state(redis)
            self.sound(state)
            assert (await verify(healthy.cell)).differences == []
            assert done or how != "is cut off", "once there is a connection again, it is done"
            if not done:
                if self.recovers:
                    await healthy.upkeep.recover()
                await self.deed(healthy)
                state = await read_state(redis)
            await self.holds(healthy, state)
            if not dying.died:
                break
        assert commands > 3


def _start_again(server: RedisServer) -> None:
    """Killed amid a write of its log, as happens once in thousands of times, it does not start on
    it: what was written of that command, which got no answer, is cut off, as ``reelserve repair``
    does it."""
    try:
        server.start()
    except DamagedLog as error:
        file = log_files(error.folder)[-1]
        os.truncate(file, scan(file).whole_bytes)
        server.start()


async def _short_log(redis: Redis) -> None:
    """A log of what there is, without its history."""
    await redis.flushall()
    await redis.bgrewriteaof()
    while (await redis.info("persistence"))["aof_rewrite_in_progress"]:
        await asyncio.sleep(0.01)
