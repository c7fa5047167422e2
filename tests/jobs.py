"""What tests of the queue share: a specification, and a way to submit it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from serving.jobs import IDLE, Job, JobQueue, Leases, Limits, Room, Wish
from serving.jobs.queue import NO_LIMITS, NO_WISH
from serving.plan.classes import DEFAULT_POLICIES
from serving.plan.clip import ClipSpec

LEASE_MS = 60_000
SHARES = {name: policy.share for name, policy in DEFAULT_POLICIES.items()}
_numbers = itertools.count()


def spec(**changes: Any) -> ClipSpec:
    """A one-second clip of the demo model."""
    return ClipSpec.model_validate(
        {
            "model": "demo-wan",
            "prompt": "a red ball",
            "seconds": 1,
            "fps": 8,
            "width": 96,
            "height": 96,
            "render_width": 96,
            "render_height": 96,
            "steps": 4,
            "guidance_scale": 5.0,
            "seed": 1,
            **changes,
        }
    )


async def submit(
    queue: JobQueue,
    *,
    user: str = "ann",
    job_id: str = "",
    est_device_ms: int = 1000,
    price: int | None = None,
    limits: Limits = NO_LIMITS,
    wish: Wish = NO_WISH,
    **changes: Any,
) -> Job:
    """The job that was accepted, or that the request had made before."""
    admission = await queue.submit(
        job_id or f"video_{next(_numbers)}",
        user=user,
        alias="sora-2",
        spec=spec(**changes),
        est_device_ms=est_device_ms,
        price=price,
        limits=limits,
        wish=wish,
    )
    assert admission.job is not None
    return admission.job


async def leased(leases: Leases, lease_ms: int = LEASE_MS, room: Room = IDLE) -> Job:
    """The next job, which must be there."""
    lease = await leases.lease(lease_ms, room)
    assert lease is not None
    return lease.job


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Wait for it; TimeoutError if it does not come."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def ended(queue: JobQueue, job: Job) -> Job:
    """The job, once it has ended."""

    async def over() -> bool:
        return (await queue.get(job.id, user=job.user)).terminal

    await until(over)
    return await queue.get(job.id, user=job.user)
