"""Previews of jobs in the artifact store, under ``<job>/previews/``: one for each attempt."""

from __future__ import annotations

import asyncio
import logging

from serving.jobs import Job, Leases
from serving.media import ArtifactStore, Frame, preview_jpeg
from serving.plan.errors import StaleLease

log = logging.getLogger(__name__)

CONTENT_TYPE = "image/jpeg"


class Previews:
    """Stores what one attempt at a job shows, beside the run, which it neither delays nor fails."""

    def __init__(self, job: Job, leases: Leases, store: ArtifactStore) -> None:
        self._job = job
        self._leases = leases
        self._store = store
        self._storing: asyncio.Task[None] | None = None

    def show(self, picture: Frame, step: int) -> None:
        """Take a picture, uint8 [height, width, 3], of the job after ``step`` steps.

        Dropped while the one before is on its way: the next will be better anyway.
        """
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store_one(picture, step))

    async def settled(self) -> None:
        """Nothing is on its way any more."""
        if self._storing:
            await self._storing

    async def _store_one(self, picture: Frame, step: int) -> None:
        # In place of this attempt's last one: whoever reads it has that one or this one, whole.
        key = f"{self._job.id}/previews/{self._job.fence}.jpg"
        size = (self._job.clip.width, self._job.clip.height)
        try:
            data = await asyncio.to_thread(preview_jpeg, picture, clip_size=size)
            await self._store.put_bytes(key, data, CONTENT_TYPE)
            try:
                await self._leases.preview(self._job, key, step)
            except StaleLease:
                await self._store.delete(key)
        except Exception as error:  # whatever it is, it is not worth the clip
            log.warning("%s: no preview of step %d: %s", self._job.id, step, error)
