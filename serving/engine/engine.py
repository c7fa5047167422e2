"""The engine's thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
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
from serving.models.family import Denoising, Family
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
    leave: _Leave | None = None

    @property
    def waiting(self) -> bool:
        """Its final latents are being kept; nothing to do for it until they are."""
        return self.denoised and self.saving and self.leave is None


class EngineClosed(RuntimeError):
    """The engine takes no more runs."""


class Engine:
    """Runs clips of one family, one step at a time, on a thread of its own.

    ``emit`` is called on that thread for every event and must return at once. Runs are
    served in order of arrival, one at a time.
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
        while run := self._next():
            self._busy_since = time.monotonic()
            try:
                self._advance(run)
            except Exception as error:
                log.warning("run %s failed", run.run_id, exc_info=True)
                self._end(run, Failed(run.run_id, error))
            self._busy_since = None

    def _next(self) -> _Run | None:
        """The run to advance next; waits for one, and None once the engine is closing."""

        def ready() -> _Run | None:
            return next((run for run in self._runs.values() if not run.waiting), None)

        with self._changed:
            self._changed.wait_for(lambda: ready() or (self._closing and not self._runs))
            return ready()

    def _advance(self, run: _Run) -> None:
        """Everything up to the run's next boundary."""
        state = run.state
        if run.leave is not None:
            self._let_go(run, run.leave)
        elif state is None:
            self._begin(run)
        elif not state.done:
            self._step(run, state)
        elif not run.denoised:
            run.denoised, run.saving = True, True
            snapshot = capture(state, self._family.fingerprint)
            self._emit(Denoised(run.run_id, snapshot, run.denoise_s))
        else:
            self._decode(run, state)

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

    def _step(self, run: _Run, state: Denoising) -> None:
        began = time.perf_counter()
        self._family.step([state])
        step_s = time.perf_counter() - began
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

    def _decode(self, run: _Run, state: Denoising) -> None:
        began = time.perf_counter()
        for frames in self._family.decode(state):
            if run.leave is not None:
                self._let_go(run, run.leave)
                return
            self._emit(FramesReady(run.run_id, frames))
            self._busy_since = time.monotonic()  # a chunk is a boundary too
        self._end(run, Decoded(run.run_id, time.perf_counter() - began))

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
