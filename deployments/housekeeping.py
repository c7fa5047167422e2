"""What an ingress replica does beside answering: leases lapse, old jobs go, garbage is taken
out, and tiers and objectives reach the queue.

Every ingress replica does it; that is wasteful by a script call a second, and nobody has to be
elected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from quota.tiers import TierFile, Tiers
from serving.jobs import JobQueue, Upkeep
from serving.media import ArtifactStore, StoreError
from serving.plan.classes import Offered
from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

TIDY_S = 1.0
COLLECT_S = 10.0
TIERS_S = 1.0
COLLECT_TOGETHER = 16


async def keep_house(
    upkeep: Upkeep,
    store: ArtifactStore,
    queue: JobQueue,
    tiers: TierFile,
    models: Sequence[Offered],
) -> None:
    """Run until cancelled. A Redis or a store that is away only delays it."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_tidy_forever(upkeep))
        group.create_task(_collect_forever(upkeep, store))
        group.create_task(apply_tiers_forever(queue, tiers))
        group.create_task(apply_objectives(queue, models))


async def _tidy_forever(upkeep: Upkeep) -> None:
    while True:
        try:
            await upkeep.tidy()
        except ServiceUnavailable as error:
            log.warning("housekeeping: %s", error)
        await asyncio.sleep(TIDY_S)


async def apply_tiers_forever(queue: JobQueue, tiers: TierFile) -> None:
    """Tell the queue what the tiers are, and again when the file changed: leases go by it too."""
    applied: Tiers | None = None
    while True:
        current = tiers.current
        if current is not applied:
            try:
                await queue.apply_tiers(current)
                applied = current
            except ServiceUnavailable as error:
                log.warning("new tiers are not in force yet: %s", error)
        await asyncio.sleep(TIERS_S)


async def apply_objectives(queue: JobQueue, models: Sequence[Offered]) -> None:
    """Tell the queue what each class of each model may count on, so that it measures by that."""
    while True:
        try:
            await queue.apply_objectives({model.id: model.classes for model in models})
        except ServiceUnavailable as error:
            log.warning("objectives are not in force yet: %s", error)
        else:
            return
        await asyncio.sleep(TIERS_S)


async def _collect_forever(upkeep: Upkeep, store: ArtifactStore) -> None:
    while True:
        try:
            while await collect_garbage(upkeep, store):
                pass
        except ServiceUnavailable as error:
            log.warning("housekeeping: %s", error)
        await asyncio.sleep(COLLECT_S)


async def collect_garbage(upkeep: Upkeep, store: ArtifactStore) -> int:
    """Remove the files of some jobs that are gone or made no clip; how many jobs."""

    async def collect(job_id: str) -> None:
        try:
            await store.delete_prefix(job_id)
        except StoreError as error:
            log.warning("files of %s stay for now: %s", job_id, error)
            await upkeep.postponed(job_id)
        else:
            await upkeep.removed(job_id)

    ids = await upkeep.garbage(COLLECT_TOGETHER)
    await asyncio.gather(*map(collect, ids))
    return len(ids)
