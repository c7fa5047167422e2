"""The engine's thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from serving.engine.checkpoint import Snapshot, capture, restore
from serving.engine.events import (
    Began,
    Decoded,
    Denoised,
    Dropped,
    Event,
    Failed,
    FramesReady,
    Saved,
    Stepped,
    Yielded,
)
from serving.models.family import Denoising, Family, Frames
from serving.plan.catalog import CheckpointPolicy
from serving.plan.clip import ClipSpec

log = logging.getLogger(__name__)


class _Leave(Enum):
    """Why a run leaves at its next boundary."""

    YIELD = auto()
    DROP = auto()


@dataclass
class _Run:
    run_id: str
    spec: ClipSpec
    resume: Snapshot | None
    state: Denoising | None = None
    denoise_s: float = 0.0
    saved_at: float = 0.0
    saved_step: int = 0
    saving: bool = False
    denoised: bool = False
    frames: Iterator[Frames] | None = None
    decode_s: float = 0.0
    alone: bool = False
    leave: _Leave | None = None

    @property
    def waiting(self) -> bool:
        """Every step is done and its last snapshot is not safe yet: nothing to do until it is."""
        done = self.state is not None and self.state.done
        return done and self.saving and self.leave is None


class EngineClosed(RuntimeError):
    """The engine takes no more runs."""


class Engine:
    """Runs clips of one family, one step at a time, on a thread of its own.

    ``emit`` is called on that thread for every event and must return at once.

    Runs join at a step boundary. The oldest leads; those whose next step may share its forward
    ride along, as many as the family's rows allow. One that makes a shared step fail is found by
    stepping each alone, and fails alone.
    """

    def __init__(
        self,
        family: Family,
        emit: Callable[[Event], None],
        policy: CheckpointPolicy | None = None,
    ) -> None:
        self._family = family
        self._emit = emit
        self._policy = policy or CheckpointPolicy()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once the thread died, which nothing but a defect can cause."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds since the last boundary, if there is anything to do; a hang shows here."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, run_id: str, spec: ClipSpec, resume: Snapshot | None = None) -> None:
        """Take a clip in; it begins, or goes on, at the first step boundary that is its turn.

        Raises :class:`EngineClosed` after :meth:`close`.
        """
        with self._changed:
            if self._closing:
                raise EngineClosed
            if run_id in self._runs:
                raise ValueError(f"run {run_id} is already here")
            self._runs[run_id] = _Run(run_id, spec, resume)
            self._changed.notify()

    def kept(self, run_id: str) -> None:
        """The last snapshot of this run is safe, or nobody will keep it."""
        with self._changed:
            if run := self._runs.get(run_id):
                run.saving = False
                self._changed.notify()

    def yield_(self, run_id: str) -> None:
        """Let a run leave at its next boundary with its state. Unknown runs are ignored."""
        self._ask_to_leave(run_id, _Leave.YIELD)

    def drop(self, run_id: str) -> None:
        """Let a run leave at its next boundary without it. Unknown runs are ignored."""
        self._ask_to_leave(run_id, _Leave.DROP)

    def _ask_to_leave(self, run_id: str, why: _Leave) -> None:
        with self._changed:
            if run := self._runs.get(run_id):
                run.leave = why
                self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Yield every run and end the thread; False if it did not end in time."""
        with self._changed:
            self._closing = True
            for run in self._runs.values():
                run.leave = run.leave or _Leave.YIELD
            self._changed.notify()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while runs := self._next():
            self._busy_since = time.monotonic()
            try:
                self._advance(runs)
            except Exception as error:
                self._blame(runs, error)
            self._busy_since = None

    def _next(self) -> list[_Run]:
        """The runs to advance together; waits for one, and none once the engine is closing."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    any(not run.waiting for run in self._runs.values())
                    or (self._closing and not self._runs)
                )
            )
            runs = [run for run in self._runs.values() if not run.waiting]
        # Who leaves or joins does so first: the batch is then as small, or as full, as it can be.
        for run in runs:
            if run.leave is not None or run.state is None:
                return [run]
        return self._batch(runs)

    def _batch(self, runs: list[_Run]) -> list[_Run]:
        """The oldest run, and those whose next step fits into its forward."""
        if not runs or not _shares(runs[0]):
            return runs[:1]
        states = [(run, run.state) for run in runs if _shares(run) and run.state]
        lead = states[0][1]
        key, room = self._family.batch_key(lead), self._family.rows_max(lead)
        batch = []
        for run, state in states:
            if state.rows <= room and self._family.batch_key(state) == key:
                batch.append(run)
                room -= state.rows
        return batch

    def _blame(self, runs: list[_Run], error: Exception) -> None:
        """Whose fault a shared step was shows when each is stepped alone."""
        if len(runs) == 1:
            log.warning("run %s failed", runs[0].run_id, exc_info=error)
            self._end(runs[0], Failed(runs[0].run_id, error))
            return
        log.warning("a step of %d runs failed; each goes on alone", len(runs), exc_info=error)
        for run in runs:
            run.alone = True

    def _advance(self, runs: list[_Run]) -> None:
        """Everything up to the next boundary."""
        run = runs[0]
        state = run.state
        if run.leave is not None:
            self._let_go(run, run.leave)
        elif state is None:
            self._begin(run)
        elif not state.done:
            self._step(runs)
        elif not run.denoised:
            run.denoised, run.saving = True, True
            snapshot = capture(state, self._family.fingerprint)
            self._emit(Denoised(run.run_id, snapshot, run.denoise_s))
        else:
            self._decode_chunk(run, state)

    def _begin(self, run: _Run) -> None:
        began = time.perf_counter()
        run.state = self._family.begin(run.spec)
        if run.resume is not None:
            restore(run.resume, run.state)
            run.saved_step = run.state.step
            # A run that resumes behind its last step has its final latents safe already.
            run.denoised = run.state.done
            run.resume = None
        run.saved_at = time.monotonic()
        self._emit(Began(run.run_id, time.perf_counter() - began, run.state.step))

    def _step(self, runs: list[_Run]) -> None:
        states = [run.state for run in runs if run.state is not None]
        before = [state.step for state in states]
        began = time.perf_counter()
        try:
            self._family.step(states)
        finally:
            # A failure may come after some of them have advanced; what is done is done.
            step_s = time.perf_counter() - began
            for run, state, step in zip(runs, states, before, strict=True):
                if state.step > step:
                    self._stepped(run, state, step_s)

    def _stepped(self, run: _Run, state: Denoising, step_s: float) -> None:
        run.denoise_s += step_s
        self._emit(Stepped(run.run_id, state.step, step_s))
        if self._is_due(run, state):
            run.saving, run.saved_at, run.saved_step = True, time.monotonic(), state.step
            self._emit(Saved(run.run_id, capture(state, self._family.fingerprint)))

    def _is_due(self, run: _Run, state: Denoising) -> bool:
        if run.saving or state.done:
            return False
        every_steps = self._policy.every_steps
        if every_steps is not None and state.step - run.saved_step >= every_steps:
            return True
        return time.monotonic() - run.saved_at >= self._policy.every_s

    def _decode_chunk(self, run: _Run, state: Denoising) -> None:
        began = time.perf_counter()
        if run.frames is None:
            run.frames = self._family.decode(state)
        frames = next(run.frames, None)
        run.decode_s += time.perf_counter() - began
        if frames is None:
            self._end(run, Decoded(run.run_id, run.decode_s))
        else:
            self._emit(FramesReady(run.run_id, frames))

    def _let_go(self, run: _Run, why: _Leave) -> None:
        if why is _Leave.DROP:
            self._end(run, Dropped(run.run_id))
            return
        snapshot = run.resume
        if run.state is not None and run.state.step > 0:
            snapshot = capture(run.state, self._family.fingerprint)
        self._end(run, Yielded(run.run_id, snapshot))

    def _end(self, run: _Run, last: Event) -> None:
        with self._changed:
            self._runs.pop(run.run_id, None)
        self._emit(last)


def _shares(run: _Run) -> bool:
    """Whether its next unit of work is a step that others may share."""
    return not run.alone and run.state is not None and not run.state.done
