"""Clips of the demo model from this process: the production engine and family, no server."""

from __future__ import annotations

import queue
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import numpy as np

from serving.engine import Decoded, Denoised, Engine, Event, Failed, FramesReady, Saved
from serving.models.family import NO_INPUTS, Frames, Inputs
from serving.models.load import load_family
from serving.plan.catalog import Model
from serving.plan.clip import ClipSpec

HANG_S = 600
CLIP = "clip"


class Studio(AbstractContextManager["Studio"]):
    """An engine with one model loaded. A failure of a clip is raised."""

    def __init__(self, model: Model, models_dir: Path) -> None:
        self.model = model
        self._events: queue.Queue[Event] = queue.Queue()
        self._engine = Engine(load_family(model, models_dir), self._events.put, model.checkpoint)

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.close(HANG_S)

    def make(self, spec: ClipSpec, inputs: Inputs = NO_INPUTS) -> Frames:
        """The clip, uint8 [frames, height, width, 3]."""
        self._engine.submit(CLIP, spec, inputs=inputs)
        chunks: list[Frames] = []
        while True:
            match self._events.get(timeout=HANG_S):
                case Saved() | Denoised():  # nobody keeps it: a clip that is lost is made again
                    self._engine.kept(CLIP)
                case FramesReady(_, frames):
                    chunks.append(frames)
                case Decoded():
                    return np.concatenate(chunks)
                case Failed(_, error):
                    raise error

    def spec(self, prompt: str, seed: int) -> ClipSpec:
        """As the API would resolve a request that leaves everything else to the model."""
        return ClipSpec.resolve(self.model, prompt=prompt, seed=seed)
