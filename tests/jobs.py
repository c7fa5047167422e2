"""What tests of the queue share: a specification, and a way to submit it."""

from __future__ import annotations

import itertools
from typing import Any

from serving.jobs.job import Job
from serving.jobs.queue import JobQueue
from serving.plan.clip import ClipSpec

LEASE_MS = 60_000
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
    queue: JobQueue, *, user: str = "ann", queued_max: int = 100, job_id: str = "", **changes: Any
) -> Job:
    return await queue.submit(
        job_id or f"video_{next(_numbers)}",
        user=user,
        alias="sora-2",
        spec=spec(**changes),
        est_device_ms=1000,
        queued_max=queued_max,
    )


async def lease(queue: JobQueue, *, replica: str = "r1", lease_ms: int = LEASE_MS) -> Job | None:
    return await queue.lease("demo-wan", replica=replica, lease_ms=lease_ms)


async def leased(queue: JobQueue, **given: Any) -> Job:
    """The next job, which must be there."""
    job = await lease(queue, **given)
    assert job is not None
    return job
