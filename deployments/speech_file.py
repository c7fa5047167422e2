"""From spoken sentences to the stored file of a job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deployments.scratch import scratch_folder
from serving.media import CODECS, ArtifactStore, AudioEncoder
from serving.plan.speech import Speaker
from serving.plan.speech_spec import SpeechSpec


class SpeechFile:
    """Encodes sentences as they are spoken, then uploads the file. Use as a context manager."""

    def __init__(self, spec: SpeechSpec, speaker: Speaker) -> None:
        self._spec = spec
        self._folder = scratch_folder()
        self._path = Path(self._folder.name) / f"speech.{spec.audio_format}"
        self._file = self._path.open("wb")
        self._finished = False
        self._encoder = AudioEncoder(
            spec.audio_format,
            speaker.sample_rate_hz,
            tempo=spec.speed / speaker.spoken_speed(spec.speed),
            loudness_lufs=spec.loudness_lufs,
            into=self._file,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._encoder.close()
        self._file.close()
        self._folder.cleanup()

    async def write(self, pcm: bytes) -> None:
        """A sentence, as its speaker gave it. Off the event loop."""
        await asyncio.to_thread(self._encoder.encode, pcm)

    async def upload(self, store: ArtifactStore, prefix: str) -> Mapping[str, Any]:
        """Finish the file and store it under ``<job>/<attempt>``; what the result records. May be
        repeated."""
        if not self._finished:
            await asyncio.to_thread(self._finish)
            self._finished = True
        kind = CODECS[self._spec.audio_format].media_type
        key = f"{prefix}/{self._path.name}"
        name = f"{prefix.partition('/')[0]}.{self._spec.audio_format}"
        await store.put_file(key, self._path, kind, filename=name)
        size_bytes = self._path.stat().st_size
        return {
            "artifacts": {"audio": {"key": key, "content_type": kind, "size_bytes": size_bytes}},
            "characters": len(self._spec.input),
            "duration_s": self._encoder.seconds,
        }

    def _finish(self) -> None:
        self._encoder.finish()
        self._file.close()
