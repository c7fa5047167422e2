"""What an ingress replica does beside answering: leases lapse, old jobs go, garbage is taken out.

Every ingress replica does it; that is wasteful by a script call a second, and nobody has to be
elected.
"""

from __future__ import annotations

import asyncio
import logging

from serving.jobs import Upkeep
from serving.media import ArtifactStore, StoreError
from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

TIDY_S = 1.0
COLLECT_EVERY = 10
COLLECT_MAX = 100


async def keep_house(upkeep: Upkeep, store: ArtifactStore) -> None:
    """Run until cancelled. A Redis or a store that is away only delays it."""
    turn = 0
    while True:
        try:
            await upkeep.tidy()
            if turn % COLLECT_EVERY == 0:
                await collect_garbage(upkeep, store)
        except (ServiceUnavailable, StoreError) as error:
            log.warning("housekeeping: %s", error)
        turn += 1
        await asyncio.sleep(TIDY_S)


async def collect_garbage(upkeep: Upkeep, store: ArtifactStore) -> None:
    """Remove the files of jobs that are gone or made no clip."""
    for job_id in await upkeep.garbage(COLLECT_MAX):
        await store.delete_prefix(job_id)
        await upkeep.removed(job_id)
