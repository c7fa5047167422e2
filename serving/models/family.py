"""What the engine needs from an architecture.

Writing a new family means writing these methods over diffusers components; reading
:mod:`serving.models.wan` first is the shortest way to learn how.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from serving.models.previews import Picture
from serving.plan.clip import ClipSpec

Frames = npt.NDArray[np.uint8]
"""Decoded pictures, uint8 [frames, height, width, 3], RGB."""


@dataclass(frozen=True)
class Inputs:
    """Pictures a clip is made from besides its text: uint8 RGB, of any size.

    ``first_frame`` and ``last_frame`` are [height, width, 3], ``video`` [frames, height, width, 3];
    ``strength`` is how far a given video is changed, from 0 to 1.
    """

    first_frame: Frames | None = None
    last_frame: Frames | None = None
    video: Frames | None = None
    strength: float = 0.8


NO_INPUTS = Inputs()


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
    """How many are done. A run that starts from a video begins with some behind it."""
    condition: torch.Tensor | None = None
    """What the given pictures became, for a family that shows them to its transformer"""
    image_embeds: torch.Tensor | None = None
    """[pictures, tokens, channels], what an image encoder made of them"""
    boundary_step: int | None = None
    """The first step of the second transformer, where there are two"""
    seen: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)
    """Latents before the last step and what was predicted of them; only a preview reads this"""
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
    """One loaded model. Every method runs on the engine's thread, which owns the device; only
    ``decode`` may have a thread of its own, where ``decode_beside`` says so. ``fingerprint`` and
    ``counters`` may be read by any thread, and ``release`` is called while nothing else is."""

    @property
    def fingerprint(self) -> str:
        """Names all that decides the bits: weights, options, library versions, device."""
        ...

    @property
    def decode_beside(self) -> bool:
        """Whether clips may be decoded on a second thread while others are denoised."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """What it counted since it was loaded, by name: ``prompt_cache_hits`` and
        ``prompt_cache_misses``. They only grow, and any thread may read them."""
        ...

    def begin(self, spec: ClipSpec, inputs: Inputs = NO_INPUTS) -> Denoising:
        """Encode the prompts (each at batch 1) and the pictures, draw the noise, set the schedule.

        The same arguments give the same bits: a checkpoint does not hold what this computes.
        Raises :class:`~serving.plan.errors.InvalidInput` for pictures that cannot be used.
        """
        ...

    def batch_key(self, run: Denoising) -> Hashable:
        """Runs with equal keys may share their next forward. It may change from step to step."""
        ...

    def rows_max(self, run: Denoising) -> int:
        """Rows one forward of this run's key may carry."""
        ...

    def release(self) -> None:
        """Give back memory that only saves work."""
        ...

    def shrink(self, batch: Sequence[Denoising]) -> bool:
        """This batch found no memory: let forwards of its key carry fewer rows from now on.

        False if that is not possible because one run needs as many.
        """
        ...

    def step(self, batch: Sequence[Denoising]) -> None:
        """One denoising step of every run in the batch, in one forward. Their keys are equal."""
        ...

    def preview(self, run: Denoising) -> Picture:
        """What the clip will show, as far as its last step can tell: one small picture, uint8
        [height, width, 3] RGB, a pixel for each latent one. The run stays as it is.
        """
        ...

    def decode(self, run: Denoising) -> Iterator[Frames]:
        """The finished clip in chunks, in order, ``spec.frames`` in all.

        Raises :class:`~serving.plan.errors.InvalidOutput` when the latents are not finite.
        """
        ...
