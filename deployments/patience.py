"""What is worth waiting for a Redis that is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

RETRY_S_MAX = 0.5
"""Well within the shortest lease: when Redis is back, a lease has only left what it had."""

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
