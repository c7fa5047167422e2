"""What the engine needs from an architecture.

Writing a new family means writing these four methods over diffusers components; reading
:mod:`serving.models.wan` first is the shortest way to learn how.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from serving.plan.clip import ClipSpec

Frames = npt.NDArray[np.uint8]
"""Decoded pictures, uint8 [frames, height, width, 3], RGB."""


@dataclass
class Denoising:
    """One clip between its first and its last step: all that a step reads or writes.

    Nothing about it lives anywhere else, so that it can move: to another batch, to a
    checkpoint, to another replica. ``scheduler`` is this clip's own: diffusers schedulers
    keep their step index and solver history inside the object.
    """

    spec: ClipSpec
    latents: torch.Tensor
    """float32 [1, channels, latent frames, latent height, latent width]"""
    scheduler: Any
    timesteps: torch.Tensor
    """float [steps], on the device"""
    prompt: torch.Tensor
    """[1, tokens, text channels] in the transformer's dtype"""
    negative_prompt: torch.Tensor | None
    """the same, or None without guidance"""
    step: int = 0
    pristine_scheduler: Mapping[str, Any] = field(init=False, repr=False)
    """The scheduler's attributes before the first step: a checkpoint holds what differs."""

    def __post_init__(self) -> None:
        # Solvers shift their history within a list; tensors they replace and never write to.
        self.pristine_scheduler = {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self.scheduler).items()
        }

    @property
    def rows(self) -> int:
        """Rows it takes in a forward: one, and one more for guidance."""
        return 1 if self.negative_prompt is None else 2

    @property
    def done(self) -> bool:
        return self.step >= len(self.timesteps)


class Family(Protocol):
    """One loaded model. Every method runs on the engine's thread, which owns the device."""

    @property
    def fingerprint(self) -> str:
        """Names all that decides the bits: weights, options, library versions, device."""
        ...

    def begin(self, spec: ClipSpec) -> Denoising:
        """Encode the prompts (each at batch 1), draw the noise and set the schedule."""
        ...

    def batch_key(self, run: Denoising) -> Hashable:
        """Runs with equal keys may share one forward."""
        ...

    def rows_max(self, run: Denoising) -> int:
        """Rows one forward of this run's key may carry."""
        ...

    def step(self, batch: Sequence[Denoising]) -> None:
        """One denoising step of every run in the batch, in one forward. Their keys are equal."""
        ...

    def decode(self, run: Denoising) -> Iterator[Frames]:
        """The finished clip in chunks, in order, ``spec.frames`` in all.

        Raises :class:`~serving.plan.errors.InvalidOutput` when the latents are not finite.
        """
        ...
