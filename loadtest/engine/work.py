"""The clips of the benchmark, and the three ways to denoise them: the engine, the library's
pipeline, and a loop written by hand."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import WanPipeline

from serving.engine import (
    Began,
    Denoised,
    Dropped,
    Engine,
    Event,
    Failed,
    Previewed,
    Saved,
    Stepped,
    Yielded,
    pack,
)
from serving.models import solver
from serving.models.text_embedding import embed
from serving.models.text_states import TextStates
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import BatchPolicy, CheckpointPolicy, Model, PreviewPolicy
from serving.plan.clip import ClipSpec

CPU = torch.device("cpu")
EVENT_S_MAX = 120.0
NO_CHECKPOINTS = CheckpointPolicy(every_s=1e6)
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


class EngineFailed(Exception):
    """A clip of the benchmark did not come out of the engine."""


def clip(tokens: int, *, number: int = 0, steps: int, guidance_scale: float = 5.0) -> ClipSpec:
    side, frames = SHAPES[tokens]
    return ClipSpec(
        model="demo-wan",
        prompt=f"a red ball rolls to the right across a wooden floor, take {number}",
        seconds=1,
        fps=frames,
        width=side,
        height=side,
        render_width=side,
        render_height=side,
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
    """The demo model's weights, loaded as its catalog entry says, but for the batch."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.shipped = model.batch
        self.slots = model.placement.slots
        self.prompt_tokens = model.load.prompt_tokens
        # One of its own for the library: ours reads prompts in another way.
        self._library = tiny_pipeline()
        self._library.set_progress_bar_config(disable=True)
        self._hand = tiny_pipeline()
        self._hand_states = TextStates(self._hand.transformer)

    def family(self, batch: BatchPolicy | None = None) -> WanFamily:
        return WanFamily(
            tiny_pipeline(),
            device=CPU,
            prompt_tokens=self.prompt_tokens,
            batch=batch or self.shipped,
            text_states_bytes=self._model.load.text_states_bytes,
            prompt_cache_bytes=self._model.load.prompt_cache_mb * 1_000_000,
        )

    def by_library(self, clips: Sequence[ClipSpec]) -> list[torch.Tensor]:
        """Clip by clip through ``WanPipeline.__call__``, to latents."""
        return [
            self._library(
                prompt=each.prompt,
                negative_prompt=each.negative_prompt,
                height=each.render_height,
                width=each.render_width,
                num_frames=each.render_frames(4),
                num_inference_steps=each.steps,
                guidance_scale=each.guidance_scale,
                generator=torch.Generator().manual_seed(each.seed),
                max_sequence_length=self.prompt_tokens,
                output_type="latent",
            ).frames
            for each in clips
        ]

    @torch.no_grad()
    def by_hand(self, spec: ClipSpec) -> list[float]:
        """Seconds of each step of one clip with guidance, in a loop that can do nothing else.

        The forward and the solver are the engine's: both rows in one, keys and values kept.
        """
        pipeline, states = self._hand, self._hand_states
        transformer = pipeline.transformer
        prompts = [
            embed(pipeline, text, self.prompt_tokens, CPU, transformer.dtype)
            for text in (spec.prompt, spec.negative_prompt)
        ]
        none = prompts[0].new_empty(2, 0, prompts[0].shape[2])
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(spec.steps)
        scheduler.set_begin_index(0)
        latents = _noise(pipeline, spec)
        ends = [time.perf_counter()]
        for timestep in scheduler.timesteps:
            with states.read(latents.shape, prompts, 2) as places:
                predictions = transformer(
                    hidden_states=torch.cat([latents, latents]),
                    timestep=torch.stack([timestep, timestep]),
                    encoder_hidden_states=none,
                    return_dict=False,
                )[0].split(1)
            conditional, unconditional = (predictions[place] for place in places or (0, 1))
            noise = unconditional + spec.guidance_scale * (conditional - unconditional)
            (latents,) = solver.step([scheduler], [noise], [latents])
            ends.append(time.perf_counter())
        return _between(ends)


class Driver:
    """An engine, and what it said with the time it said it."""

    def __init__(
        self,
        family: WanFamily,
        policy: CheckpointPolicy = NO_CHECKPOINTS,
        previews: PreviewPolicy | None = None,
    ) -> None:
        self._family = family
        self._said: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
        self.engine = Engine(
            family, lambda event: self._said.put((time.perf_counter(), event)), policy, previews
        )
        self._runs = 0

    @classmethod
    @contextmanager
    def of(
        cls,
        family: WanFamily,
        policy: CheckpointPolicy = NO_CHECKPOINTS,
        previews: PreviewPolicy | None = None,
    ) -> Iterator[Driver]:
        driver = cls(family, policy, previews)
        driver.engine.start()
        try:
            yield driver
        finally:
            driver.engine.close(EVENT_S_MAX)

    def next(self) -> tuple[float, Event]:
        at, event = self._said.get(timeout=EVENT_S_MAX)
        if isinstance(event, Failed):
            raise EngineFailed(f"run {event.run_id}: {event.error}") from event.error
        return at, event

    def submit(self, spec: ClipSpec) -> str:
        self._runs += 1
        self.engine.submit(str(self._runs), spec)
        return str(self._runs)

    def denoise(self, clips: Sequence[ClipSpec], slots: int) -> list[torch.Tensor]:
        """Final latents of each; at most ``slots`` clips are in the engine at once.

        None of their prompts was seen before.
        """
        self._family.release()
        waiting = iter(clips)
        order: list[str] = []
        ended: dict[str, torch.Tensor] = {}

        def join() -> None:
            if (spec := next(waiting, None)) is not None:
                order.append(self.submit(spec))

        for _ in range(slots):
            join()
        while len(ended) < len(clips):
            _, event = self.next()
            if isinstance(event, Denoised):
                ended[event.run_id] = event.snapshot.tensors["latents"]
                self.engine.drop(event.run_id)  # rather than decode it
                join()
        return [ended[run_id] for run_id in order]

    def steps_s(self, spec: ClipSpec) -> list[float]:
        """Seconds of each step of a clip that is alone, from boundary to boundary.

        Snapshots are packed beside the steps, as a replica does before it stores them.
        """
        return [seconds for seconds, _ in self.timed_steps(spec)]

    def timed_steps(self, spec: ClipSpec) -> list[tuple[float, bool]]:
        """Likewise, and whether a snapshot or a picture was made at the boundary it began with."""
        run_id = self.submit(spec)
        steps: list[tuple[float, bool]] = []
        began, laden = 0.0, False
        while True:
            at, event = self.next()
            match event:
                case Began():
                    began = at
                case Stepped(step=step) if step < spec.steps:
                    steps.append((at - began, laden))
                    began, laden = at, False
                case Previewed():
                    laden = True
                case Saved(snapshot=snapshot):
                    laden = True
                    pack(snapshot)
                    self.engine.kept(run_id)
                case Denoised():  # what follows the last step counts as part of it
                    steps.append((at - began, laden))
                    self.engine.drop(run_id)
                case Dropped():
                    return steps

    def yield_s_beyond_step(self, spec: ClipSpec, delay_s: float) -> float:
        """How long after the end of the step in progress a clip had left that was told to."""
        run_id = self.submit(spec)
        while not isinstance(self.next()[1], Stepped):
            pass
        time.sleep(delay_s)
        asked = time.perf_counter()
        self.engine.yield_(run_id)
        boundary = asked
        while True:
            at, event = self.next()
            if isinstance(event, Stepped) and boundary == asked < at:
                boundary = at  # a second step would be late
            if isinstance(event, Yielded):
                return at - boundary


def _between(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def _noise(pipeline: WanPipeline, spec: ClipSpec) -> torch.Tensor:
    config: Any = pipeline.vae.config
    frames = (spec.render_frames(config.scale_factor_temporal) - 1) // config.scale_factor_temporal
    side = spec.render_width // config.scale_factor_spatial
    return torch.randn(
        (1, config.z_dim, frames + 1, side, side), generator=torch.Generator().manual_seed(0)
    )
