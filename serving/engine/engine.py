"""The engine's thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from serving import context
from serving.engine.checkpoint import Copier, Snapshot, capture, restore
from serving.engine.device import is_device_lost, is_out_of_memory, release_memory
from serving.engine.events import (
    Began,
    Decoded,
    Denoised,
    Dropped,
    Event,
    Failed,
    FramesReady,
    Previewed,
    Saved,
    Stepped,
    Yielded,
)
from serving.engine.run import Leave, Run
from serving.engine.saving import SaveSchedule
from serving.models.family import NO_INPUTS, Denoising, Family, Inputs
from serving.plan.catalog import CheckpointPolicy, PreviewPolicy
from serving.plan.clip import ClipSpec
from serving.plan.errors import InvalidOutput, OutOfMemory
from serving.plan.rank import Contender, rank

log = logging.getLogger(__name__)


class EngineClosed(RuntimeError):
    """The engine takes no more runs."""


class _Lane:
    """A thread that works on the runs it ``takes``, one tick at a time."""

    def __init__(self, name: str, takes: Callable[[Run], bool], beside: bool = False) -> None:
        self.name = name
        self.takes = takes
        self.beside = beside
        self.busy_since: float | None = None

    def stream(self) -> AbstractContextManager[object]:
        """On a GPU, work beside the steps is queued beside them as well."""
        if self.beside and torch.cuda.is_available():
            return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        return nullcontext()


class Engine:
    """Runs clips of one family, one step at a time, on threads of its own.

    ``emit`` is called on these threads for every event and must return at once.

    Runs join at a step boundary. The one that ranks first leads; those whose next step may share
    its forward ride along in the order of their rank, as many as the family's rows allow. One that
    makes a shared step fail is found by stepping each alone, and fails alone. Where the family
    allows, finished runs are decoded on a second thread while others are denoised.
    """

    def __init__(
        self,
        family: Family,
        emit: Callable[[Event], None],
        policy: CheckpointPolicy | None = None,
        previews: PreviewPolicy | None = None,
    ) -> None:
        self._family = family
        self._emit = emit
        self._saves = SaveSchedule(policy or CheckpointPolicy())
        self._previews = previews
        self._copy = Copier()
        self._runs: dict[str, Run] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._lanes = [_Lane("engine", lambda run: True)]
        if family.decode_beside:
            self._lanes = [
                _Lane("engine", lambda run: not _decodes(run)),
                _Lane("decoder", _decodes, beside=True),
            ]
        self._threads = [
            threading.Thread(target=self._loop, args=(lane,), name=lane.name, daemon=True)
            for lane in self._lanes
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """False once a thread died: by a defect, or because the device is lost."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def busy_s(self) -> float:
        """Seconds since the last boundary, if there is anything to do; a hang shows here."""
        now = time.monotonic()
        since = [lane.busy_since or now for lane in self._lanes]
        return now - min(since)

    def submit(
        self,
        run_id: str,
        spec: ClipSpec,
        resume: Snapshot | None = None,
        inputs: Inputs = NO_INPUTS,
        contender: Contender | None = None,
    ) -> None:
        """Take a clip in; it begins, or goes on, at the first step boundary that is its turn.

        ``contender`` decides its turn; its clock is ``time.monotonic()``, in ms. Runs without one
        go first come, first served. Raises :class:`EngineClosed` after :meth:`stop`.
        """
        contender = contender or Contender(_now_ms(), total_ms=0, remaining_ms=0)
        with self._changed:
            if self._closing:
                raise EngineClosed
            if run_id in self._runs:
                raise ValueError(f"run {run_id} is already here")
            self._runs[run_id] = Run(run_id, spec, inputs, resume, contender)
            self._changed.notify_all()

    def kept(self, run_id: str) -> None:
        """The last snapshot of this run is safe, or nobody will keep it."""
        with self._changed:
            if run := self._runs.get(run_id):
                run.saving = False
                self._changed.notify_all()

    def yield_(self, run_id: str) -> None:
        """Let a run leave at its next boundary with its state. Unknown runs are ignored."""
        self._ask_to_leave(run_id, Leave.YIELD)

    def drop(self, run_id: str) -> None:
        """Let a run leave at its next boundary without it. Unknown runs are ignored."""
        self._ask_to_leave(run_id, Leave.DROP)

    def _ask_to_leave(self, run_id: str, why: Leave) -> None:
        with self._changed:
            if run := self._runs.get(run_id):
                run.leave = run.leave if run.leave is Leave.DROP else why
                self._changed.notify_all()

    @property
    def closing(self) -> bool:
        """Whether it takes no more runs."""
        return self._closing

    def stop(self) -> dict[str, int]:
        """Yield every run, and take no other. The threads end once all have left.

        Says how many steps each run had made by then. It ends the one that it is in, at most.
        """
        with self._changed:
            self._closing = True
            steps = {run.run_id: run.step for run in self._runs.values()}
            for run in self._runs.values():
                run.leave = run.leave or Leave.YIELD
            self._changed.notify_all()
        return steps

    def close(self, timeout_s: float) -> bool:
        """:meth:`stop`, and wait for the threads; False if they did not end in time."""
        deadline = time.monotonic() + timeout_s
        self.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # What is next.

    def _loop(self, lane: _Lane) -> None:
        with lane.stream():
            while runs := self._next(lane):
                lane.busy_since = time.monotonic()
                with context.bound(**runs[0].ids if len(runs) == 1 else {}):
                    try:
                        self._advance(runs)
                    except Exception as error:
                        self._blame(runs, error)
                lane.busy_since = None
                with self._changed:
                    for run in runs:
                        run.taken = False
                    if len(self._lanes) > 1:
                        self._changed.notify_all()  # it may be the other's by now

    def _next(self, lane: _Lane) -> list[Run]:
        """The runs to advance together; waits for one, and none once the engine is closing."""
        with self._changed:
            while not (ready := self._ready(lane)):
                if self._closing and not self._runs:
                    return []
                self._changed.wait()
            now_ms = _now_ms()
            ready.sort(key=lambda run: rank(run.now, now_ms))
            runs = self._choose(ready)
            for run in runs:
                run.taken = True
            return runs

    def _ready(self, lane: _Lane) -> list[Run]:
        runs = list(self._runs.values())
        if starved := [run for run in runs if run.starved and not run.waiting]:
            # Another thread may have held the memory: these try again while nobody else works.
            runs = [] if any(run.taken for run in runs) else starved
        return [run for run in runs if not run.taken and not run.waiting and lane.takes(run)]

    def _choose(self, ready: list[Run]) -> list[Run]:
        """What to do next for these, which are in the order of their rank."""
        # Who leaves does so first, then final latents are made safe, then others join: so a batch
        # is as small, or as full, as it can be. Whoever may have made a step fail is tried alone.
        leaving = [run for run in ready if run.leave is not None]
        unsettled = [run for run in ready if run.unsettled]
        joining = [run for run in ready if run.state is None]
        suspects = [run for run in ready if run.alone and run.steps_left]
        if first := (leaving or unsettled or joining or suspects)[:1]:
            return first
        if not ready[0].steps_left:  # each clip half decoded holds the decoder's memory
            return ([run for run in ready if run.frames is not None] or ready)[:1]
        return self._batch(ready)

    def _batch(self, ready: list[Run]) -> list[Run]:
        """The first of the runs, and those whose next step fits into its forward."""
        if not ready[0].shares:
            return ready[:1]
        states = [(run, run.state) for run in ready if run.shares and run.state]
        lead = states[0][1]
        key, room = self._family.batch_key(lead), self._family.rows_max(lead)
        batch = []
        for run, state in states:
            if state.rows <= room and self._family.batch_key(state) == key:
                batch.append(run)
                room -= state.rows
        return batch

    # When it goes wrong.

    def _blame(self, runs: list[Run], error: Exception) -> None:
        """Whose fault a shared step was shows when each is stepped alone.

        Raises, and so ends the thread, when the device is lost: another process must go on.
        """
        if is_device_lost(error):
            raise error
        starving = is_out_of_memory(error)
        if starving:
            error.__traceback__ = None  # its frames hold the tensors
            self._close_decoders()
            release_memory()
            if self._has_another_way(runs):
                log.warning("out of memory with %d runs; trying again: %s", len(runs), error)
                return
        if len(runs) == 1:
            if starving:
                error = OutOfMemory(
                    "The clip needs more memory than this model's device has. "
                    "Ask for a smaller size or fewer seconds."
                )
            log.warning("run %s failed", runs[0].run_id, exc_info=error)
            self._end(runs[0], Failed(runs[0].run_id, error))
            return
        log.warning("a step of %d runs failed; each goes on alone", len(runs), exc_info=error)
        for run in runs:
            run.alone = True

    def _close_decoders(self) -> None:
        """Clips half decoded begin again; what was handed out is not handed out twice."""
        with self._changed:
            for run in self._runs.values():
                if not run.taken:
                    run.frames = None

    def _has_another_way(self, runs: list[Run]) -> bool:
        """After the device had no memory: once more as it was, with nobody beside it; then in
        smaller forwards."""
        for run in runs:
            run.frames = None
        if not runs[0].starved:
            with self._changed:
                for run in runs:
                    run.starved = True
            return True
        states = [run.state for run in runs if run.state is not None]
        return runs[0].steps_left and self._family.shrink(states)

    # One tick.

    def _advance(self, runs: list[Run]) -> None:
        """Everything up to the next boundary."""
        run = runs[0]
        state = run.state
        if run.starved:  # nobody else works now
            self._family.release()
        if run.leave is not None:
            self._let_go(run, run.leave)
        elif state is None:
            self._begin(run)
        elif not state.done:
            self._step(runs)
        elif not run.denoised:
            self._denoised(run, state)
        else:
            self._decode_chunk(run, state)
            return
        for each in runs:
            each.starved = False
        if len(runs) == 1:
            run.alone = False

    def _begin(self, run: Run) -> None:
        began = time.perf_counter()
        state = self._family.begin(run.spec, run.inputs)
        if run.resume is not None:
            restore(run.resume, state)
            # A run that resumes behind its last step has its final latents safe already.
            run.denoised = state.done
        run.state, run.resume, run.inputs = state, None, NO_INPUTS
        self._saves.begins(run, state.step)
        run.shown_at, run.shown_step = time.monotonic(), state.step
        self._emit(Began(run.run_id, time.perf_counter() - began, state.step))

    def _step(self, runs: list[Run]) -> None:
        states = [run.state for run in runs if run.state is not None]
        before = [state.step for state in states]
        rows = sum(state.rows for state in states)
        began = time.perf_counter()
        finite: list[bool] = []
        try:
            self._family.step(states)
            finite = _finite(states)
        finally:
            # A failure may come after some of them have advanced; what is done is done.
            step_s = time.perf_counter() - began
            finite = finite or [True] * len(runs)
            for run, state, step, good in zip(runs, states, before, finite, strict=True):
                if state.step > step:
                    leads = run is runs[0]
                    event = Stepped(run.run_id, state.step, step_s, rows, leads)
                    with context.bound(**run.ids):
                        self._stepped(run, state, event, good)

    def _stepped(self, run: Run, state: Denoising, event: Stepped, finite: bool) -> None:
        run.denoise_s += event.step_s
        self._emit(event)
        if not finite:
            log.warning("run %s: not finite after step %d", run.run_id, state.step)
            self._end(run, Failed(run.run_id, _not_finite(state)))
            return
        if self._saves.is_due(run):
            self._save(run, state)
        if self._previews is not None and self._is_to_show(self._previews, run, state):
            self._show(run, state)

    def _save(self, run: Run, state: Denoising) -> None:
        """A snapshot that cannot be made costs only the work since the one before."""
        self._saves.begins(run, state.step)
        if snapshot := self._snapshot_if_possible(run, state):
            run.saving = True
            self._emit(Saved(run.run_id, snapshot))

    def _snapshot_if_possible(self, run: Run, state: Denoising) -> Snapshot | None:
        try:
            return self._snapshot(state)
        except Exception as error:
            if is_device_lost(error):
                raise
            log.warning("run %s: step %d is not saved: %s", run.run_id, state.step, error)
            return None

    def _is_to_show(self, policy: PreviewPolicy, run: Run, state: Denoising) -> bool:
        if run.blind or state.done:
            return False
        if policy.every_steps is not None and state.step - run.shown_step >= policy.every_steps:
            return True
        return time.monotonic() - run.shown_at >= policy.every_s

    def _show(self, run: Run, state: Denoising) -> None:
        run.shown_at, run.shown_step = time.monotonic(), state.step
        try:
            picture = self._family.preview(state)
        except Exception:
            log.warning("run %s has no more previews", run.run_id, exc_info=True)
            run.blind = True
        else:
            self._emit(Previewed(run.run_id, state.step, picture))

    def _denoised(self, run: Run, state: Denoising) -> None:
        state.seen = None
        snapshot = self._snapshot(state)
        run.denoised, run.saving = True, True
        self._emit(Denoised(run.run_id, snapshot, run.denoise_s))

    def _snapshot(self, state: Denoising) -> Snapshot:
        snapshot = capture(state, self._family.fingerprint, self._copy)
        self._saves.saved(snapshot.size_bytes)
        return snapshot

    def _decode_chunk(self, run: Run, state: Denoising) -> None:
        began = time.perf_counter()
        if run.frames is None:
            run.frames, run.chunks = self._family.decode(state), 0
        frames = next(run.frames, None)
        run.decode_s += time.perf_counter() - began
        run.chunks += 1
        if frames is None:
            self._end(run, Decoded(run.run_id, run.decode_s))
        elif run.chunks > run.chunks_sent:  # not decoded again after the device had no memory
            run.chunks_sent, run.starved = run.chunks, False
            self._emit(FramesReady(run.run_id, frames))

    def _let_go(self, run: Run, why: Leave) -> None:
        if why is Leave.DROP:
            self._end(run, Dropped(run.run_id))
            return
        snapshot = run.resume
        if run.state is not None and run.state.step > 0:
            snapshot = self._snapshot_if_possible(run, run.state)
        self._end(run, Yielded(run.run_id, snapshot))

    def _end(self, run: Run, last: Event) -> None:
        with self._changed:
            self._runs.pop(run.run_id, None)
            run.state = run.frames = None  # a thread that waits still knows the run
            self._changed.notify_all()
        self._emit(last)


def _decodes(run: Run) -> bool:
    return run.denoised and not run.saving


def _now_ms() -> int:
    return int(1000 * time.monotonic())


def _finite(states: list[Denoising]) -> list[bool]:
    """Whether each run's latents are finite numbers. Waits for the device, once for all of them,
    so that a step has ended when it is said to have."""
    sums = torch.stack([state.latents.sum() for state in states])
    finite: list[bool] = sums.isfinite().tolist()
    return finite


def _not_finite(state: Denoising) -> InvalidOutput:
    return InvalidOutput(
        f"The model's result is not a picture: after step {state.step} its latents are not finite "
        "numbers. Try another seed, fewer steps or a lower guidance_scale."
    )
