"""One leased job on the engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from deployments.checkpoints import Held, load_checkpoint, save_checkpoint
from deployments.clip_files import ClipFiles
from deployments.engine_attempt import EngineAttempt
from deployments.leased_run import LeasedRun
from deployments.patience import until_answered
from deployments.previews import Previews
from deployments.upscaling import Upscaling
from serving.engine import (
    Began,
    Decoded,
    Denoised,
    Dropped,
    Engine,
    EngineClosed,
    Event,
    Failed,
    FramesReady,
    Previewed,
    Saved,
    Snapshot,
    Stepped,
    Yielded,
)
from serving.jobs import Lease, Leases, Phase
from serving.media import ArtifactStore, StoreError, StoreUnavailable
from serving.models.family import Frames
from serving.models.triton_upscaler import TritonUpscaler
from serving.plan.costs import CostModel, output_pixels, rendered_pixels, upscaled_pixels
from serving.plan.errors import (
    CheckpointError,
    GenerationError,
    ModelFailed,
    ServiceUnavailable,
    StaleLease,
)
from serving.plan.rank import Contender
from serving.tracing import NO_TRACER, Tracer

log = logging.getLogger(__name__)

LEASE_PER_STAGE = 20
"""A lease outlives this many estimated steps, so that a slow one does not lose its job."""


class JobRun(LeasedRun):
    """Follows one job through the engine and delivers its clip.

    The engine's events arrive by :meth:`receive`.
    """

    postpones = (EngineClosed, StoreUnavailable, ServiceUnavailable)
    _attempt: EngineAttempt

    def __init__(
        self,
        lease: Lease,
        *,
        costs: CostModel,
        fingerprint: str,
        lease_s_min: Callable[[], float],
        leases: Leases,
        store: ArtifactStore,
        held: Held,
        engine: Engine,
        left_slot: Callable[[], None],
        tracer: Tracer = NO_TRACER,
        upscaler: TritonUpscaler | None = None,
    ) -> None:
        attempt = EngineAttempt(lease, tracer, lease.job.checkpoint_step)
        super().__init__(lease, attempt, leases=leases, store=store, left_slot=left_slot)
        self._costs = costs
        self._estimate = costs.estimate(self.job.clip)
        self.tokens = self.job.clip.tokens(costs.model)
        self._deliver_s = 0.0
        self._fingerprint = fingerprint
        self._lease_s_min = lease_s_min
        self._held = held
        self._engine = engine
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._keeping: asyncio.Task[None] | None = None
        self._upscaler = upscaler
        self._upscaling: Upscaling | None = None
        self._previews = Previews(self.job, leases, store)
        self._in_engine = False
        self._step_s = 0.0

    @property
    def lease_s(self) -> float:
        """How long the run may go without progress."""
        cost = self._estimate
        stage_s = max(self._step_s, cost.step_s, cost.encode_s, cost.decode_s, cost.deliver_s)
        return max(self._lease_s_min(), LEASE_PER_STAGE * stage_s)

    @property
    def compile_s(self) -> float:
        """How long the engine may be busy with compiling for this run."""
        denoises = not self._released and self._step < self.job.clip.steps
        return self._costs.compile_s(self.tokens) if denoises else 0.0

    def drains(self, step: int) -> None:
        """The replica leaves, and has asked the engine to give the job back at this step."""
        self._attempt.drains(step)

    def receive(self, event: Event) -> None:
        self._attempt.saw(event)
        self._events.put_nowait(event)
        if isinstance(event, Decoded):  # frames that still wait here keep nobody from the device
            self._release()

    def preempt(self) -> None:
        self._preempted = True
        if self._in_engine:
            self._engine.yield_(self.id)

    def _left_share(self, step: int) -> float:
        return self._estimate.left_share(step)

    @property
    def _switch_ms(self) -> int:
        # The prompt is encoded again.
        return round(1000 * self._estimate.encode_s)

    async def _serve(self) -> None:
        try:
            await super()._serve()
        finally:
            if self._keeping:  # it removes what it stores for a job that is no longer ours
                await asyncio.gather(self._keeping, return_exceptions=True)
            await self._previews.settled()

    async def _make_and_store(self) -> dict[str, Any] | None:
        self._upscaling = self._open_upscaling()
        with ClipFiles(self.job.clip) as files:
            self._engine.submit(
                self.id, self.job.clip, await self._resume(), contender=self._contender
            )
            self._in_engine = True
            if self._preempted:  # while it was being loaded
                self._engine.yield_(self.id)
            finished = await self._follow(files)
            if self._keeping:
                await self._keeping
            self._release()
            if not finished:
                return None
            self._attempt.begins("deliver")
            began = time.perf_counter()
            result = dict(await self._patiently(lambda: self._upload(files), Phase.STORE))
            self._stages["store_s"] = time.perf_counter() - began
            self._costs.observe_deliver(output_pixels(self.job.clip), self._deliver_s)
            if self._upscaling:
                self._stages["upscale_s"] = self._upscaling.spent_s
                made = upscaled_pixels(self.job.clip)
                self._costs.observe_upscale(made, self._upscaling.spent_s)
            return result

    @property
    def _contender(self) -> Contender:
        """By the engine's clock."""
        job = self.job
        return Contender(1000 * self._created_s, job.est_device_ms, self._left_ms, job.seat)

    def _open_upscaling(self) -> Upscaling | None:
        if self.job.clip.upscale == 1:
            return None
        if self._upscaler is None:  # the catalog was edited since
            raise ModelFailed(
                "The clip was to be upscaled, which this model no longer offers. Submit it again "
                "without 'upscale'."
            )
        return Upscaling(
            self._upscaler, lambda: self._heartbeat(Phase.UPSCALE), lambda: self._engine.closing
        )

    async def _take(self, files: ClipFiles, frames: Frames) -> None:
        """Frames as they were decoded."""
        if self._upscaling is None:
            await self._write(files, frames)
            await self._heartbeat_if_due(Phase.DECODE)
            return
        async for upscaled in self._upscaling.of(frames):
            await self._write(files, upscaled)
            await self._heartbeat_if_due(Phase.UPSCALE)

    async def _write(self, files: ClipFiles, frames: Frames) -> None:
        began = time.perf_counter()
        await files.write(frames)
        self._deliver_s += time.perf_counter() - began

    async def _upload(self, files: ClipFiles) -> Mapping[str, Any]:
        began = time.perf_counter()
        result = await files.upload(self._store, self.id)
        self._deliver_s += time.perf_counter() - began
        return result

    def _release(self) -> None:
        if not self._released:
            self._engine.drop(self.id)
        super()._release()

    async def _follow(self, files: ClipFiles) -> bool:
        """Follow the engine's events to the last frame; False if the run yielded."""
        await self._heartbeat(self._phase)  # the lease was granted before it was known for what
        while True:
            event = await self._next_event()
            match event:
                case Began():
                    self._stages["encode_s"], self._step = event.encode_s, event.step
                    self._spent_s += event.encode_s
                    self._costs.observe_encode(event.encode_s)
                    await self._heartbeat(Phase.DENOISE)
                case Stepped():
                    self._step, self._step_s = event.step, event.step_s
                    self._spend(event)
                    if event.step == 1:  # when it came is measured
                        await self._heartbeat(Phase.DENOISE)
                    await self._heartbeat_if_due(Phase.DENOISE)
                case Saved():
                    self._keep(event.snapshot)
                case Previewed():
                    self._previews.show(event.picture, event.step)
                case Denoised():
                    self._stages["denoise_s"] = event.denoise_s
                    self._keep(event.snapshot)
                    await self._heartbeat(Phase.DECODE)
                case FramesReady():
                    await self._take(files, event.frames)
                case Decoded():
                    self._stages.setdefault("denoise_s", 0.0)
                    self._stages["decode_s"] = event.decode_s
                    self._spent_s += event.decode_s
                    pixels = rendered_pixels(self._costs.model, self.job.clip)
                    self._costs.observe_decode(pixels, event.decode_s)
                    return True
                case Yielded():
                    await self._keep_last(event.snapshot)
                    return False
                case Dropped():
                    raise StaleLease(self.id)
                case Failed():
                    raise _as_generation_error(event.error) from event.error

    async def _next_event(self) -> Event:
        """The engine's next word on this run. One that waits for its turn keeps its lease for as
        long as the engine gets on with the others."""
        while True:
            patience_s = self.lease_s / 4
            try:
                async with asyncio.timeout(patience_s):
                    return await self._events.get()
            except TimeoutError:
                if self._engine.alive and self._engine.busy_s < patience_s:
                    await self._heartbeat(self._phase)

    # Progress.

    def _spend(self, event: Stepped) -> None:
        step_s = event.step_s
        # One forward, however many it carried.
        if event.leads and not self._costs.observe_step(self.tokens, event.rows, step_s):
            # What compiling takes beside the step is nobody's in particular.
            step_s = min(step_s, self._estimate.step_s)
        self._spent_s += step_s * self.job.clip.rows / event.rows

    @property
    def _remaining_ms(self) -> int:
        """From this run's own step time once it has one."""
        step_s = self._step_s or self._estimate.step_s
        left_s = step_s * (self.job.clip.steps - self._step)
        cost = self._estimate
        return max(1, round(1000 * (left_s + cost.decode_s + cost.upscale_s + cost.deliver_s)))

    # Checkpoints.

    async def _resume(self) -> Snapshot | None:
        """Where an earlier attempt left off, if that can be trusted."""
        if not self.job.checkpoint:
            return None
        snapshot = self._held.take(self.job.checkpoint)
        if snapshot and snapshot.fingerprint == self._fingerprint:
            await until_answered(lambda: self._leases.resumed(self.job, from_memory=True))
            return snapshot
        try:
            load = partial(load_checkpoint, self._store, self.job, self._fingerprint)
            snapshot = await self._patiently(load, Phase.ENCODE)
        except CheckpointError as error:
            log.warning("%s starts over: %s", self.id, error)
            self._step = 0
            await until_answered(partial(self._leases.refused, self.job, error))
            return None
        await until_answered(lambda: self._leases.resumed(self.job))
        return snapshot

    def _keep(self, snapshot: Snapshot) -> None:
        """Store a snapshot beside the run; the engine makes no other until this one is kept."""
        self._keeping = asyncio.create_task(self._store_snapshot(snapshot))

    async def _keep_last(self, snapshot: Snapshot | None) -> None:
        if self._keeping:
            await self._keeping
        if snapshot is not None:
            await self._store_snapshot(snapshot, last=True)

    async def _store_snapshot(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """A snapshot that cannot be stored costs only the work since the one before."""
        try:
            key = await save_checkpoint(self._store, self.job, snapshot)
            try:
                left_ms = self._left_after(snapshot.step)
                point = partial(self._leases.checkpoint, self.job, key, snapshot.step, left_ms)
                # The last one is waited for: the job goes back to where it points.
                obsolete = await (until_answered(point) if last else point())
            except StaleLease:
                obsolete = key
                self._engine.drop(self.id)
            else:
                if last and self._preempted and obsolete != key:
                    self._held.put(key, snapshot)
                    self._holding = True
            if obsolete:
                await self._store.delete(obsolete)
        except (StoreError, ServiceUnavailable) as error:
            log.warning("%s: step %d is not saved: %s", self.id, snapshot.step, error)
        finally:
            self._engine.kept(self.id)

    async def _remove_leftovers(self) -> None:
        await self._previews.settled()
        await super()._remove_leftovers()


def _as_generation_error(error: Exception) -> GenerationError:
    if isinstance(error, GenerationError):
        return error
    return ModelFailed(
        f"The model failed on this request ({type(error).__name__}). "
        "Other settings may work; the operator's log says more."
    )
