"""A task that is told to end does, though the first word is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from deployments.patience import end

pytestmark = pytest.mark.asyncio


async def test_a_cancellation_that_was_swallowed_is_repeated() -> None:
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        swallowed += 1
        await asyncio.sleep(3600)

    async def hears() -> None:
        await asyncio.sleep(3600)

    tasks = [asyncio.create_task(each()) for each in (deaf, hears)]
    await asyncio.sleep(0)
    await end(*tasks)
    assert swallowed == 1
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_failed_is_over() -> None:
    async def fails() -> None:
        raise ValueError("x")

    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    await end(task)
