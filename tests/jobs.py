"""What tests of the queue share: a specification, and a way to submit it."""

from __future__ import annotations

import itertools
from typing import Any

from serving.jobs import Job, JobQueue, Leases
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


async def submit(queue: JobQueue, *, user: str = "ann", job_id: str = "", **changes: Any) -> Job:
    return await queue.submit(
        job_id or f"video_{next(_numbers)}",
        user=user,
        alias="sora-2",
        spec=spec(**changes),
        est_device_ms=1000,
    )


async def leased(leases: Leases, lease_ms: int = LEASE_MS) -> Job:
    """The next job, which must be there."""
    job = await leases.lease(lease_ms)
    assert job is not None
    return job
