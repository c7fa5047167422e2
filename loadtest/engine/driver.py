"""The engine as a benchmark drives it: clips go in, and what it says comes out with the time."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

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
from serving.models.family import Family, Frames
from serving.plan.catalog import CheckpointPolicy, PreviewPolicy
from serving.plan.clip import ClipSpec

EVENT_S_MAX = 300.0
"""A step may wait for the compiler."""
NO_CHECKPOINTS = CheckpointPolicy(every_s=1e6)


class EngineFailed(Exception):
    """A clip of the benchmark did not come out of the engine."""


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
