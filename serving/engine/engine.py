"""The engine's thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from serving.engine.events import (
    Began,
    Decoded,
    Event,
    Failed,
    FramesReady,
    Stepped,
    Stopped,
)
from serving.models.family import Denoising, Family
from serving.plan.clip import ClipSpec

log = logging.getLogger(__name__)


@dataclass
class _Run:
    run_id: str
    spec: ClipSpec
    state: Denoising | None = None
    denoise_s: float = 0.0
    stopping: bool = False


class Engine:
    """Runs clips of one family, one step at a time, on a thread of its own.

    ``emit`` is called on that thread for every event and must return at once. Runs are
    served in order of arrival, one at a time.
    """

    def __init__(self, family: Family, emit: Callable[[Event], None]) -> None:
        self._family = family
        self._emit = emit
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once the thread died, which nothing but a defect can cause."""
        return self._thread.is_alive()

    def submit(self, run_id: str, spec: ClipSpec) -> None:
        """Take a clip in; it begins at the next step boundary at which it is its turn."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine is closing")
            if run_id in self._runs:
                raise ValueError(f"run {run_id} is already here")
            self._runs[run_id] = _Run(run_id, spec)
            self._changed.notify()

    def stop(self, run_id: str) -> None:
        """Drop a run at its next step boundary. Unknown and finished runs are ignored."""
        with self._changed:
            if run := self._runs.get(run_id):
                run.stopping = True
                self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Stop every run at its boundary and end the thread; False if it did not end in time."""
        with self._changed:
            self._closing = True
            for run in self._runs.values():
                run.stopping = True
            self._changed.notify()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while run := self._next():
            try:
                self._advance(run)
            except Exception as error:
                log.warning("run %s failed", run.run_id, exc_info=True)
                self._leave(run, Failed(run.run_id, error))

    def _next(self) -> _Run | None:
        """The run to advance next; waits for one, and None once the engine is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._runs or self._closing)
            return next(iter(self._runs.values()), None)

    def _advance(self, run: _Run) -> None:
        """Everything up to the run's next boundary."""
        if run.stopping:
            self._leave(run, Stopped(run.run_id))
        elif run.state is None:
            began = time.perf_counter()
            run.state = self._family.begin(run.spec)
            self._emit(Began(run.run_id, time.perf_counter() - began))
        elif not run.state.done:
            began = time.perf_counter()
            self._family.step([run.state])
            step_s = time.perf_counter() - began
            run.denoise_s += step_s
            self._emit(Stepped(run.run_id, run.state.step, step_s))
        else:
            self._decode(run, run.state)

    def _decode(self, run: _Run, state: Denoising) -> None:
        began = time.perf_counter()
        for frames in self._family.decode(state):
            if run.stopping:
                self._leave(run, Stopped(run.run_id))
                return
            self._emit(FramesReady(run.run_id, frames))
        decode_s = time.perf_counter() - began
        self._leave(run, Decoded(run.run_id, run.denoise_s, decode_s))

    def _leave(self, run: _Run, last: Event) -> None:
        with self._changed:
            self._runs.pop(run.run_id, None)
        self._emit(last)
