"""The sentences of a text that were spoken already: what its job goes on from.

Each is an object of its own in the artifact store, under ``<job>/spoken/``, written before the next
one is asked for. So saving one costs the same however long the text is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator

from serving.jobs import Job
from serving.media import ArtifactMissing, ArtifactStore
from serving.plan.errors import CheckpointError, CheckpointForeign
from serving.plan.speech import Speaker
from serving.plan.speech_model import SpeechModel

CONTENT_TYPE = "application/octet-stream"


class Spoken:
    """Of one job, by one speaker: 16-bit mono PCM at its rate.

    ``folder`` is what the job points at as its checkpoint. It is named after all that decides how
    the sentences sound, and which they are: so what another version of us, or another voice under
    the same name, has said is never taken for ours, and what two attempts write there is the same.
    """

    def __init__(
        self, store: ArtifactStore, job: Job, model: SpeechModel, speaker: Speaker
    ) -> None:
        spec = job.speech
        decides = {
            "by": model.model_dump(mode="json", include={"family", "triton", "checkpoint"}),
            "rate_hz": speaker.sample_rate_hz,
            "voice": spec.voice,
            "speed": speaker.spoken_speed(spec.speed),
            "instructions": spec.instructions,
            "sentences": list(spec.sentences),
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = f"{job.id}/spoken/{digest}"
        self._store, self._job = store, job

    def check(self) -> None:
        """:class:`CheckpointForeign` unless the job goes on from what we would have said."""
        if self._job.checkpoint != self.folder:
            raise CheckpointForeign(f"{self._job.checkpoint} was spoken otherwise")

    async def put(self, step: int, pcm: bytes) -> None:
        """Keep the sentence of this number, counted from 0."""
        await self._store.put_bytes(f"{self.folder}/{step}", pcm, CONTENT_TYPE)

    async def first(self, steps: int) -> AsyncIterator[bytes]:
        """The first so many, in order; :class:`CheckpointError` if one is not there."""
        for step in range(steps):
            try:
                yield b"".join([part async for part in self._store.read(f"{self.folder}/{step}")])
            except ArtifactMissing:
                raise CheckpointError(f"sentence {step} of {self._job.id} is gone") from None
