"""The clips of the benchmark, and the weights for each of three ways to denoise them: the engine,
the library's pipeline, and a loop written by hand. The last two are here."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from diffusers import WanPipeline, attention_backend

from loadtest.engine.driver import Ran
from serving.models import solver
from serving.models.load import family_of, tune
from serving.models.text_embedding import embed
from serving.models.text_states import TextStates
from serving.models.tiny import CPU, tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import BatchPolicy, Model
from serving.plan.clip import ClipSpec

SHAPES: Mapping[int, tuple[int, int]] = {
    4: (32, 1),
    32: (64, 5),
    108: (96, 8),
    320: (128, 16),
    1280: (256, 16),
}
"""Latent tokens of a row of the demo model: side in pixels and frames of a clip that has them."""
SCALES = (5.0, 3.5, 7.5, 4.0, 6.0, 2.0, 9.0, 1.0)
"""Guidance scales in turn; one clip in eight has no guidance."""


def clip(tokens: int, *, number: int = 0, steps: int, guidance_scale: float = 5.0) -> ClipSpec:
    side, frames = SHAPES[tokens]
    return clip_of(side, side, frames, number=number, steps=steps, guidance_scale=guidance_scale)


def clip_of(
    width: int,
    height: int,
    frames: int,
    *,
    number: int = 0,
    steps: int,
    guidance_scale: float = 5.0,
) -> ClipSpec:
    """A clip that the model renders at its own size. ``number`` is its prompt's and its seed."""
    return ClipSpec(
        model="demo-wan",
        prompt=f"a red ball rolls to the right across a wooden floor, take {number}",
        seconds=1,
        fps=frames,
        width=width,
        height=height,
        render_width=width,
        render_height=height,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=number,
    )


def mixed_clips(tokens: int, count: int) -> list[ClipSpec]:
    """4 to 12 steps, in no order, each with a prompt, a seed and a guidance scale of its own."""
    return [
        clip(
            tokens,
            number=number,
            steps=4 + number * 5 % 9,
            guidance_scale=SCALES[number % len(SCALES)],
        )
        for number in range(count)
    ]


class Bench:
    """Weights made on the spot, as a catalog entry says they are loaded, but for the batch.

    Each way to denoise has a pipeline of its own: ours change how a transformer reads prompts.
    """

    def __init__(
        self,
        model: Model,
        make: Callable[[], WanPipeline] = tiny_pipeline,
        device: torch.device = CPU,
    ) -> None:
        self._model = _of_text(model)
        self._make = make
        self.device = device
        self.slots = model.placement.slots
        self.prompt_tokens = model.load.prompt_tokens

    def family(self, batch: BatchPolicy | None = None) -> WanFamily:
        """Loaded anew. Nobody has learned to show its latents yet."""
        changes = {} if batch is None else {"batch": batch}
        model = self._model.model_copy(update=changes)
        with _attention_of_its_own():
            return family_of(model, self._make(), self.device)

    @cached_property
    def library(self) -> WanPipeline:
        pipeline = self._make().to(self.device)
        with _attention_of_its_own():
            tune(self._model, pipeline.transformer)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @cached_property
    def _hand(self) -> tuple[WanPipeline, TextStates]:
        pipeline = self._make().to(self.device)
        states = TextStates(pipeline.transformer)
        with _attention_of_its_own():
            tune(self._model, pipeline.transformer)
        return pipeline, states

    def by_library(self, clips: Sequence[ClipSpec]) -> list[torch.Tensor]:
        """Clip by clip through ``WanPipeline.__call__``, to latents."""
        return [self._call_library(each) for each in clips]

    def library_run(self, spec: ClipSpec) -> Ran:
        """One clip through the same, whose steps after the first are timed as one: its loop does
        not wait for the device in between. They count as equally long."""
        first: list[float] = []

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
            if step == 0:
                first.append(now(self.device))
            return {}

        latents = self._call_library(spec, callback_on_step_end=after_step)
        timed = spec.steps - 1
        mean_s = (now(self.device) - first[0]) / max(1, timed)
        return Ran([(mean_s, False)] * timed, latents.cpu())

    def _call_library(self, spec: ClipSpec, **options: Any) -> torch.Tensor:
        latents: torch.Tensor = self.library(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt,
            height=spec.render_height,
            width=spec.render_width,
            num_frames=spec.render_frames(4),
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
            max_sequence_length=self.prompt_tokens,
            output_type="latent",
            **options,
        ).frames
        return latents

    @torch.no_grad()
    def by_hand(self, spec: ClipSpec) -> list[float]:
        """Seconds of each step of one clip with guidance, in a loop that can do nothing else.

        The forward and the solver are the engine's: both rows in one, keys and values kept. Each
        step ends when the device has.
        """
        pipeline, states = self._hand
        transformer = pipeline.transformer
        prompts = [
            embed(pipeline, text, self.prompt_tokens, self.device, transformer.dtype)
            for text in (spec.prompt, spec.negative_prompt)
        ]
        none = prompts[0].new_empty(2, 0, prompts[0].shape[2])
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(spec.steps, device=self.device)
        scheduler.set_begin_index(0)
        latents = _noise(pipeline, spec).to(self.device)
        ends = [now(self.device)]
        for timestep in scheduler.timesteps:
            with states.read(latents.shape, prompts, 2) as places:
                predictions = transformer(
                    hidden_states=torch.cat([latents, latents]).to(transformer.dtype),
                    timestep=torch.stack([timestep, timestep]),
                    encoder_hidden_states=none,
                    return_dict=False,
                )[0].split(1)
            conditional, unconditional = (predictions[place] for place in places or (0, 1))
            noise = unconditional + spec.guidance_scale * (conditional - unconditional)
            (latents,) = solver.step([scheduler], [noise], [latents])
            ends.append(now(self.device))
        return _between(ends)


def _of_text(model: Model) -> Model:
    """The entry of a checkpoint that makes clips of text alone, without previews."""
    video = model.video.model_copy(update={"inputs": {"video": "optional"}})
    return model.model_copy(update={"video": video, "preview": None})


@contextmanager
def _attention_of_its_own() -> Iterator[None]:
    """Within, a transformer may be given its attention. The library makes that the default of all
    the process's models that were given none, which are others to compare it with."""
    with attention_backend("native"):
        yield


def now(device: torch.device) -> float:
    """The time once the device has done all that it was given, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _between(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def _noise(pipeline: WanPipeline, spec: ClipSpec) -> torch.Tensor:
    config: Any = pipeline.vae.config
    packed, side = config.scale_factor_temporal, config.scale_factor_spatial
    frames = (spec.render_frames(packed) - 1) // packed + 1
    return torch.randn(
        (1, config.z_dim, frames, spec.render_height // side, spec.render_width // side),
        generator=torch.Generator().manual_seed(0),
    )
