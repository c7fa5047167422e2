"""The clips of the benchmark, and the three ways to denoise them: the engine, the library's
pipeline, and a loop written by hand."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline, attention_backend

from serving.engine import (
    Began,
    Decoded,
    Denoised,
    Dropped,
    Engine,
    Event,
    Failed,
    FramesReady,
    Previewed,
    Saved,
    Snapshot,
    Stepped,
    Yielded,
    pack,
)
from serving.models import solver
from serving.models.family import Family, Frames
from serving.models.load import family_of, tune
from serving.models.text_embedding import embed
from serving.models.text_states import TextStates
from serving.models.tiny import CPU, tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import BatchPolicy, CheckpointPolicy, Model, PreviewPolicy
from serving.plan.clip import ClipSpec

EVENT_S_MAX = 300.0
"""A step may wait for the compiler."""
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


@dataclass
class Ran:
    """A clip that was denoised alone: seconds of its steps, and whether each began with a snapshot
    or a picture; its final latents on the CPU; the checkpoints made on the way, by their step."""

    steps: list[tuple[float, bool]]
    latents: torch.Tensor
    saved: dict[int, bytes] = field(default_factory=dict)


class Driver:
    """An engine, and what it said with the time it said it."""

    def __init__(
        self,
        family: Family,
        policy: CheckpointPolicy = NO_CHECKPOINTS,
        previews: PreviewPolicy | None = None,
    ) -> None:
        self.family = family
        self._said: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
        self.engine = Engine(
            family, lambda event: self._said.put((time.perf_counter(), event)), policy, previews
        )
        self._runs = 0

    @classmethod
    @contextmanager
    def of(
        cls,
        family: Family,
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

    def submit(self, spec: ClipSpec, resume: Snapshot | None = None) -> str:
        self._runs += 1
        self.engine.submit(str(self._runs), spec, resume)
        return str(self._runs)

    def denoise(self, clips: Sequence[ClipSpec], slots: int) -> list[torch.Tensor]:
        """Final latents of each; at most ``slots`` clips are in the engine at once.

        None of their prompts was seen before.
        """
        self.family.release()
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
                ended[event.run_id] = _latents(event.snapshot)
                self.engine.drop(event.run_id)  # rather than decode it
                join()
        return [ended[run_id] for run_id in order]

    def steps_s(self, spec: ClipSpec) -> list[float]:
        """Seconds of each step of a clip that is alone, from boundary to boundary."""
        return [seconds for seconds, _ in self.timed_steps(spec)]

    def timed_steps(self, spec: ClipSpec) -> list[tuple[float, bool]]:
        """Likewise, and whether a snapshot or a picture was made at the boundary it began with."""
        return self.run(spec).steps

    def run(self, spec: ClipSpec, resume: Snapshot | None = None) -> Ran:
        """A clip that is alone, from where ``resume`` was taken if that is given.

        Snapshots are packed beside the steps, as a replica does before it stores them.
        """
        run_id = self.submit(spec, resume)
        ran = Ran([], torch.empty(0))
        began, laden = 0.0, False
        while True:
            at, event = self.next()
            match event:
                case Began():
                    began = at
                case Stepped(step=step) if step < spec.steps:
                    ran.steps.append((at - began, laden))
                    began, laden = at, False
                case Previewed():
                    laden = True
                case Saved(snapshot=snapshot):
                    laden = True
                    ran.saved[snapshot.step] = pack(snapshot)
                    self.engine.kept(run_id)
                case Denoised(snapshot=snapshot):  # what follows the last step is part of it
                    ran.steps.append((at - began, laden))
                    ran.latents = _latents(snapshot)
                    self.engine.drop(run_id)
                case Dropped():
                    return ran

    def crowd_s(self, clips: Sequence[ClipSpec]) -> list[float]:
        """Seconds of each forward that carried all of these, from boundary to boundary; but for the
        first, before which some of them joined. They are of one shape and fit into one."""
        self.submit(clips[0].model_copy(update={"steps": clips[0].steps + 1}))  # may be ahead by 1
        for spec in clips[1:]:
            self.submit(spec)
        rows = sum(spec.rows for spec in clips)
        seconds: list[float] = []
        last: float | None = None
        left = len(clips)
        while left:
            at, event = self.next()
            match event:
                case Stepped(rows=carried, leads=True):
                    if last is not None and carried == rows:
                        seconds.append(at - last)
                    last = at if carried == rows else None
                case Denoised(run_id=run_id):
                    self.engine.drop(run_id)
                case Dropped():
                    left -= 1
        return seconds

    def yielded(self, spec: ClipSpec, step: int) -> bytes:
        """The checkpoint of a clip that was told to leave after this many steps, or soon after."""
        run_id = self.submit(spec)
        while True:
            match self.next()[1]:
                case Stepped(step=done) if done == step:
                    self.engine.yield_(run_id)
                case Yielded(snapshot=Snapshot() as snapshot):
                    return pack(snapshot)
                case Denoised() | Yielded():
                    raise EngineFailed(f"a clip of {spec.steps} steps did not leave on its way")

    def frames(self, spec: ClipSpec) -> Frames:
        """The clip itself: uint8 [frames, height, width, 3], RGB."""
        run_id = self.submit(spec)
        chunks: list[Frames] = []
        while True:
            match self.next()[1]:
                case Denoised():
                    self.engine.kept(run_id)
                case FramesReady(frames=frames):
                    chunks.append(frames)
                case Decoded():
                    return np.concatenate(chunks)

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


def _latents(snapshot: Snapshot) -> torch.Tensor:
    """Those of a snapshot, once a GPU has copied them."""
    snapshot.wait()
    return snapshot.tensors["latents"]


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
