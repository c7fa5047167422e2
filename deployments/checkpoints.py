"""Checkpoints of jobs in the artifact store, under ``<job>/checkpoints/``."""

from __future__ import annotations

import asyncio

from serving.engine import Snapshot, pack, unpack
from serving.jobs import Job
from serving.media import ArtifactMissing, ArtifactStore, StoreUnavailable
from serving.plan.errors import CheckpointError

CONTENT_TYPE = "application/octet-stream"
LOAD_TRIES = 3
LOAD_PAUSE_S = 1.0


def folder_of(job_id: str) -> str:
    """Not the attempt's own folder: the next attempt goes on from what this one saved."""
    return f"{job_id}/checkpoints"


async def save_checkpoint(store: ArtifactStore, job: Job, snapshot: Snapshot) -> str:
    """Store a snapshot; its key. The store writes it whole or not at all."""
    key = f"{folder_of(job.id)}/{job.fence}-{snapshot.step}"
    await store.put_bytes(key, await asyncio.to_thread(pack, snapshot), CONTENT_TYPE)
    return key


async def load_checkpoint(store: ArtifactStore, job: Job, fingerprint: str) -> Snapshot:
    """The snapshot the job points at; :class:`CheckpointError` says why it is of no use."""
    data = await _read(store, job.checkpoint)
    return await asyncio.to_thread(unpack, data, job.spec, fingerprint)


async def _read(store: ArtifactStore, key: str) -> bytes:
    for left in reversed(range(LOAD_TRIES)):
        try:
            return b"".join([part async for part in store.read(key)])
        except ArtifactMissing:
            raise CheckpointError(f"{key} is not in the store") from None
        except StoreUnavailable as error:
            if not left:
                raise CheckpointError(f"{key} cannot be read: {error}") from error
            await asyncio.sleep(LOAD_PAUSE_S)
    raise AssertionError("unreachable")
