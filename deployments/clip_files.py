"""From decoded frames to the three stored files of a clip."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deployments.scratch import scratch_folder
from serving.media import ArtifactStore, StillsCollector, VideoWriter
from serving.models.family import Frames
from serving.plan.clip import ClipSpec


class ClipFiles:
    """Encodes a clip as its frames arrive, then uploads it. Use as a context manager.

    ``write`` and ``upload`` run in a thread, off the event loop and off the engine.
    """

    def __init__(self, spec: ClipSpec) -> None:
        self._spec = spec
        self._folder = scratch_folder()
        self._path = Path(self._folder.name) / "video.mp4"
        self._video = VideoWriter(self._path, width=spec.width, height=spec.height, fps=spec.fps)
        self._stills = StillsCollector(spec.frames, clip_size=(spec.width, spec.height))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._video.abort()  # only if upload() did not finish it
        self._folder.cleanup()

    async def write(self, frames: Frames) -> None:
        await asyncio.to_thread(self._write, frames)

    def _write(self, frames: Frames) -> None:
        self._video.write(frames)
        self._stills.write(frames)

    async def upload(self, store: ArtifactStore, prefix: str) -> Mapping[str, Any]:
        """Finish the files and store them under ``<job>/<attempt>``; what the result records."""
        job_id = prefix.partition("/")[0]
        info = await asyncio.to_thread(self._video.close)
        stills = await asyncio.to_thread(self._stills.finish)
        artifacts: dict[str, dict[str, Any]] = {
            "video": {"key": f"{prefix}/video.mp4", "content_type": "video/mp4"},
            "thumbnail": {"key": f"{prefix}/thumbnail.jpg", "content_type": "image/jpeg"},
            "spritesheet": {"key": f"{prefix}/spritesheet.jpg", "content_type": "image/jpeg"},
        }
        for variant, data in (
            ("thumbnail", stills.thumbnail),
            ("spritesheet", stills.spritesheet),
        ):
            name = f"{job_id}-{variant}.jpg"
            await store.put_bytes(artifacts[variant]["key"], data, "image/jpeg", filename=name)
            artifacts[variant]["size_bytes"] = len(data)
        artifacts["spritesheet"]["tiles"] = {
            "count": stills.tiles,
            "columns": stills.columns,
            "rows": stills.rows,
            "width": stills.tile_width,
            "height": stills.tile_height,
        }
        await store.put_file(
            artifacts["video"]["key"],
            self._path,
            "video/mp4",
            filename=f"{job_id}.mp4",
        )
        artifacts["video"]["size_bytes"] = info.size_bytes
        return {
            "artifacts": artifacts,
            "frames": info.frames,
            "duration_s": info.duration_s,
        }
