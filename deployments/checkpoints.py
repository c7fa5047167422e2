"""Checkpoints of jobs: in the artifact store under ``<job>/checkpoints/``, a few also in memory."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict

from serving.engine import Snapshot, pack, unpack
from serving.jobs import Job
from serving.media import ArtifactMissing, ArtifactStore
from serving.plan.errors import CheckpointError

HELD_BYTES_MAX = 512 * 2**20
CONTENT_TYPE = "application/octet-stream"


def folder_of(job_id: str) -> str:
    """Not the attempt's own folder: the next attempt goes on from what this one saved."""
    return f"{job_id}/checkpoints"


async def save_checkpoint(store: ArtifactStore, job: Job, snapshot: Snapshot) -> str:
    """Store a snapshot; its key. The store writes it whole or not at all.

    The key is new each time: a run that became stale removes what it has just stored, and that
    must not be what its heir goes on from.
    """
    key = f"{folder_of(job.id)}/{job.fence}-{snapshot.step}-{secrets.token_hex(4)}"
    await store.put_bytes(key, await asyncio.to_thread(pack, snapshot), CONTENT_TYPE)
    return key


async def load_checkpoint(store: ArtifactStore, job: Job, fingerprint: str) -> Snapshot:
    """The snapshot the job points at.

    Raises :class:`CheckpointError` if it is of no use, and ``StoreUnavailable`` if that cannot
    be said now.
    """
    try:
        data = b"".join([part async for part in store.read(job.checkpoint)])
    except ArtifactMissing:
        raise CheckpointError(f"{job.checkpoint} is not in the store") from None
    return await asyncio.to_thread(unpack, data, job.clip, fingerprint)


class Held:
    """The last checkpoints of jobs that were preempted here, by their key in the store.

    A job that comes back to this replica goes on from memory. What is here is what the store has
    under the same key, so it is never a wrong one; the oldest go when there are too many bytes.
    """

    def __init__(self, bytes_max: int = HELD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._snapshots: OrderedDict[str, Snapshot] = OrderedDict()

    def put(self, key: str, snapshot: Snapshot) -> None:
        self._snapshots[key] = snapshot
        while sum(map(_bytes, self._snapshots.values())) > self._bytes_max:
            self._snapshots.popitem(last=False)

    def take(self, key: str) -> Snapshot | None:
        """The checkpoint, which is then no longer here."""
        return self._snapshots.pop(key, None)


def _bytes(snapshot: Snapshot) -> int:
    return sum(tensor.nbytes for tensor in snapshot.tensors.values())
