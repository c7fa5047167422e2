"""What is worth waiting for: a Redis that is away, and a task that is told to end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

RETRY_S_MAX = 0.5
"""Well within the shortest lease: when Redis is back, a lease has only left what it had."""

CANCEL_AGAIN_S = 1.0

T = TypeVar("T")


async def until_answered(write: Callable[[], Awaitable[T]]) -> T:
    """Repeat a write that records what was done until Redis answers: the work is worth it."""
    delay_s = 0.1
    while True:
        try:
            return await write()
        except ServiceUnavailable as error:
            log.warning("cannot record the state of a job yet: %s", error)
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_S_MAX, delay_s * 2)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these until they have ended, however they do.

    A client library may swallow a cancellation that comes at the moment when what it waits for is
    there. Then the task goes on, and whoever cancelled it once would wait for ever.
    """
    left: set[asyncio.Task[Any]] = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()):
            log.error("%s ended: %s", task.get_name(), error)
