"""The worker inside a model replica: leases jobs, drives the engine, delivers clips.

Runs on one event loop. It knows nothing of Ray, so a test can run it as it is against a real
Redis; :mod:`deployments.replica` is the thin shell that Ray Serve sees.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from deployments.clip_files import ClipFiles
from serving.engine import (
    Began,
    Decoded,
    Engine,
    Event,
    Failed,
    FramesReady,
    Stepped,
    Stopped,
)
from serving.jobs.job import Job, Phase
from serving.jobs.queue import JobQueue
from serving.media import ArtifactStore, EncodeError, StoreError
from serving.models.family import Family
from serving.plan.catalog import Model
from serving.plan.errors import (
    DeliveryFailed,
    GenerationError,
    ModelFailed,
    ServiceUnavailable,
    StaleLease,
)
from serving.plan.estimate import Estimate, estimate

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often an idle worker leases when no wake message came: messages may be lost."""
HEARTBEAT_S = 0.25
"""Progress is written at most this often; steps may take a millisecond."""
LEASE_S_MIN = 15.0
LEASE_PER_STEP = 20
"""A lease outlives this many estimated steps, so that a slow step does not lose its job."""
RETRY_S_MAX = 5.0
UPLOAD_S = 120.0


@dataclass
class _Run:
    """One leased job between its lease and its end."""

    job: Job
    estimate: Estimate
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    stages: dict[str, float] = field(default_factory=dict)
    heartbeat_at: float = 0.0
    step: int = 0
    step_s: float = 0.0

    @property
    def id(self) -> str:
        """Names this attempt: the fence sets it apart from an earlier one still winding down."""
        return f"{self.job.id}/{self.job.fence}"

    @property
    def lease_ms(self) -> int:
        step_s = max(self.step_s, self.estimate.step_s, self.estimate.encode_s)
        return int(1000 * max(LEASE_S_MIN, LEASE_PER_STEP * step_s))

    @property
    def remaining_ms(self) -> int:
        """From this run's own step time once it has one."""
        step_s = self.step_s or self.estimate.step_s
        left_s = step_s * (self.job.spec.steps - self.step)
        return max(1, round(1000 * (left_s + self.estimate.decode_s + self.estimate.deliver_s)))


class Worker:
    """Serves one pool: ``slots`` jobs in the engine at once, delivery of earlier ones beside."""

    def __init__(
        self, model: Model, family: Family, queue: JobQueue, store: ArtifactStore, replica: str
    ) -> None:
        self._model = model
        self._queue = queue
        self._store = store
        self._replica = replica
        self._runs: dict[str, _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_engine = 0
        self._leasing = True
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._engine = Engine(family, self._emit)
        self._engine.start()

    @property
    def healthy(self) -> bool:
        return self._engine.alive

    async def run(self) -> None:
        """Serve until cancelled. Redis may go away and come back meanwhile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lease_forever())
            group.create_task(self._listen_forever())

    async def drain(self, timeout_s: float) -> None:
        """Stop leasing, hand every job in the engine back, let deliveries finish."""
        self._leasing = False
        await asyncio.to_thread(self._engine.close, timeout_s)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    # Leasing.

    async def _lease_forever(self) -> None:
        while self._leasing:
            self._wake.clear()
            # One delivery may run beside a full engine; more would only pile up frames.
            room = self._in_engine < self._slots and len(self._runs) <= self._slots
            job = await self._lease() if room else None
            if job is not None:
                self._start(job)
                continue
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    @property
    def _slots(self) -> int:
        return self._model.placement.slots

    async def _lease(self) -> Job | None:
        lease_ms = int(1000 * max(LEASE_S_MIN, LEASE_PER_STEP * self._model.cost.encode_s))
        try:
            return await self._queue.lease(self._model.id, replica=self._replica, lease_ms=lease_ms)
        except ServiceUnavailable as error:
            log.warning("cannot lease: %s", error)
            return None

    async def _listen_forever(self) -> None:
        while True:
            try:
                async with self._queue.signals(self._model.id) as signals:
                    while True:
                        dropped = await signals.next(timeout_s=POLL_S)
                        if dropped:
                            self._engine.stop(f"{dropped.job_id}/{dropped.fence}")
                        else:
                            self._wake.set()
            except ServiceUnavailable as error:
                log.warning("cannot listen: %s", error)
                await asyncio.sleep(POLL_S)

    # One job.

    def _emit(self, event: Event) -> None:
        """Called on the engine's thread."""
        self._loop.call_soon_threadsafe(self._receive, event)

    def _receive(self, event: Event) -> None:
        if run := self._runs.get(event.run_id):
            run.events.put_nowait(event)

    def _start(self, job: Job) -> None:
        run = _Run(job, estimate(self._model, job.spec))
        self._runs[run.id] = run
        self._in_engine += 1
        self._engine.submit(run.id, job.spec)
        task = asyncio.create_task(self._serve(run), name=run.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, run: _Run) -> None:
        """Run one job to its end and record how it ended. Never raises."""
        job = run.job
        try:
            if not await self._generate(run):
                await self._until_answered(lambda: self._queue.give_back(job))
        except StaleLease:
            self._engine.stop(run.id)
            log.info("%s is no longer ours", run.id)
            await self._discard(run)
        except GenerationError as error:
            log.warning("%s failed: %s", run.id, error)
            await self._end_failed(run, error)
        except Exception as error:
            # A defect of ours: the job fails alone, and says so, rather than hang.
            log.exception("%s failed unexpectedly", run.id)
            self._engine.stop(run.id)
            await self._end_failed(run, ModelFailed(f"Unexpected {type(error).__name__}."))
        finally:
            del self._runs[run.id]
            self._wake.set()

    async def _generate(self, run: _Run) -> bool:
        """From the lease to the stored clip; False if the engine was told to stop."""
        job = run.job
        try:
            with ClipFiles(job.spec) as files:
                try:
                    if not await self._follow(run, files):
                        return False
                finally:
                    self._in_engine -= 1
                    self._wake.set()
                began = time.perf_counter()
                await self._heartbeat(run, Phase.STORE, lease_ms=int(UPLOAD_S * 1000))
                result = dict(await files.upload(self._store, run.id))
                run.stages["store_s"] = time.perf_counter() - began
        except (EncodeError, StoreError) as error:
            raise DeliveryFailed(
                "The clip was made but could not be stored. Submit it again; if it happens "
                "again, tell the operator."
            ) from error
        result["stages"] = run.stages
        await self._until_answered(lambda: self._queue.complete(job, result))
        return True

    async def _follow(self, run: _Run, files: ClipFiles) -> bool:
        """Follow the engine's events to the last frame; False if it stopped."""
        while True:
            event = await run.events.get()
            match event:
                case Began():
                    run.stages["encode_s"] = event.encode_s
                    await self._heartbeat(run, Phase.DENOISE)
                case Stepped():
                    run.step, run.step_s = event.step, event.step_s
                    due = time.monotonic() - run.heartbeat_at >= HEARTBEAT_S
                    if due or run.step == run.job.spec.steps:
                        await self._heartbeat(run, Phase.DENOISE)
                case FramesReady():
                    await files.write(event.frames)
                    if time.monotonic() - run.heartbeat_at >= HEARTBEAT_S:
                        await self._heartbeat(run, Phase.DECODE)
                case Decoded():
                    run.stages["denoise_s"] = event.denoise_s
                    run.stages["decode_s"] = event.decode_s
                    return True
                case Stopped():
                    return False
                case Failed():
                    if isinstance(event.error, GenerationError):
                        raise event.error
                    raise ModelFailed(
                        f"The model failed on this request ({type(event.error).__name__}). "
                        "Other settings may work; the operator's log says more."
                    ) from event.error

    async def _heartbeat(self, run: _Run, phase: Phase, lease_ms: int | None = None) -> None:
        """Renew the lease because the run got further. A Redis that is away stops nothing."""
        try:
            await self._queue.heartbeat(
                run.job,
                lease_ms=lease_ms or run.lease_ms,
                phase=phase,
                step=run.step,
                remaining_ms=run.remaining_ms,
            )
        except ServiceUnavailable as error:
            log.warning("%s: heartbeat: %s", run.id, error)
        run.heartbeat_at = time.monotonic()

    async def _end_failed(self, run: _Run, error: GenerationError) -> None:
        try:
            await self._until_answered(lambda: self._queue.fail(run.job, error))
        except StaleLease:
            log.info("%s is no longer ours", run.id)
        await self._discard(run)

    async def _until_answered(self, write: Callable[[], Awaitable[None]]) -> None:
        """Repeat a write that records an end until Redis answers: the work is done, keep it."""
        delay_s = 0.1
        while True:
            try:
                return await write()
            except ServiceUnavailable as error:
                log.warning("cannot record the end of a job yet: %s", error)
                await asyncio.sleep(delay_s)
                delay_s = min(RETRY_S_MAX, delay_s * 2)

    async def _discard(self, run: _Run) -> None:
        """Remove what this attempt may have stored: no job refers to it."""
        try:
            await self._store.delete_prefix(run.id)
        except StoreError as error:
            log.warning("%s: could not discard files: %s", run.id, error)
