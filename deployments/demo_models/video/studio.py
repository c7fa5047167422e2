"""Clips of the demo model from this process: the production engine and family, no server."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import numpy as np

from serving.engine import Decoded, Denoised, Engine, Event, Failed, FramesReady
from serving.models.family import NO_INPUTS, Frames, Inputs
from serving.models.load import load_family
from serving.plan.catalog import Model
from serving.plan.clip import ClipSpec

HANG_S = 600


class Studio(AbstractContextManager["Studio"]):
    """An engine with one model loaded. A failure of a clip is raised."""

    def __init__(self, model: Model, models_dir: Path) -> None:
        self.model = model
        self._events: queue.Queue[Event] = queue.Queue()
        self._engine = Engine(load_family(model, models_dir), self._events.put)

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.close(HANG_S)

    def make(self, asked: Mapping[str, tuple[ClipSpec, Inputs]]) -> dict[str, Frames]:
        """The clips by name, uint8 [frames, height, width, 3]; they share forwards."""
        for name, (spec, inputs) in asked.items():
            self._engine.submit(name, spec, inputs=inputs)
        chunks: dict[str, list[Frames]] = {name: [] for name in asked}
        left = set(asked)
        while left:
            match self._events.get(timeout=HANG_S):
                case Denoised(run_id):
                    self._engine.kept(run_id)
                case FramesReady(run_id, frames):
                    chunks[run_id].append(frames)
                case Decoded(run_id):
                    left.remove(run_id)
                case Failed(_, error):
                    raise error
        return {name: np.concatenate(each) for name, each in chunks.items()}

    def spec(self, prompt: str, seed: int, **asked: object) -> ClipSpec:
        """As the API would resolve a request; what is not said is the model's default."""
        return ClipSpec.resolve(self.model, prompt=prompt, seed=seed, **asked)  # type: ignore[arg-type]


def alone(spec: ClipSpec, inputs: Inputs = NO_INPUTS) -> dict[str, tuple[ClipSpec, Inputs]]:
    return {"clip": (spec, inputs)}
