"""One clip in the engine, from submission to its last event."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from serving import context
from serving.engine.checkpoint import Snapshot
from serving.models.family import Denoising, Frames, Inputs
from serving.plan.clip import ClipSpec
from serving.plan.rank import Contender


class Leave(Enum):
    """Why a run leaves at its next boundary."""

    YIELD = auto()
    DROP = auto()


@dataclass
class Run:
    """What the engine knows of a run. ``taken`` while one of its threads works on it; ``ids`` are
    those of the task that submitted it, for what is logged on its behalf."""

    run_id: str
    spec: ClipSpec
    inputs: Inputs
    resume: Snapshot | None
    contender: Contender
    state: Denoising | None = None
    denoise_s: float = 0.0
    saved_at: float = 0.0
    saved_step: int = 0
    saving: bool = False
    shown_at: float = 0.0
    shown_step: int = 0
    blind: bool = False
    denoised: bool = False
    frames: Iterator[Frames] | None = None
    chunks: int = 0
    chunks_sent: int = 0
    decode_s: float = 0.0
    alone: bool = False
    starved: bool = False
    leave: Leave | None = None
    taken: bool = False
    ids: context.Ids = field(default_factory=context.ids)

    @property
    def step(self) -> int:
        """How many steps are done, or saved by an earlier run. Any thread may ask."""
        resume = self.resume  # read first: it goes once there is a state
        if self.state is not None:
            return self.state.step
        return 0 if resume is None else resume.step

    @property
    def steps_left(self) -> bool:
        return self.state is not None and not self.state.done

    @property
    def shares(self) -> bool:
        """Whether its next unit of work is a step that others may share."""
        return self.steps_left and not self.alone

    @property
    def unsettled(self) -> bool:
        """Every step is done, and its final latents were not handed out yet."""
        return self.state is not None and self.state.done and not self.denoised

    @property
    def waiting(self) -> bool:
        """Every step is done and its last snapshot is not safe yet: nothing to do until it is."""
        done = self.state is not None and self.state.done
        return done and self.saving and self.leave is None

    @property
    def now(self) -> Contender:
        """The contender with the work that is left by now."""
        if self.state is None or not len(self.state.timesteps):
            return self.contender
        left = 1 - self.state.step / len(self.state.timesteps)
        return Contender(
            created_ms=self.contender.created_ms,
            total_ms=self.contender.total_ms,
            remaining_ms=round(left * self.contender.total_ms),
            seat=self.contender.seat,
        )
