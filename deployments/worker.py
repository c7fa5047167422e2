"""The worker inside a model replica: leases jobs and runs them on the engine.

Runs on one event loop. It knows nothing of Ray, so a test can run it as it is against a real
Redis; :mod:`deployments.replica` is the thin shell that Ray Serve sees.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from contextlib import suppress

from deployments.clip_files import remove_orphans
from deployments.run import LEASE_PER_STAGE, JobRun, until_answered
from serving.engine import Engine, Event
from serving.jobs import Cell, Job, JobSettings, Leases
from serving.media import ArtifactStore
from serving.models.family import Family
from serving.plan.catalog import Model
from serving.plan.errors import ServiceUnavailable
from serving.plan.estimate import estimate

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often an idle worker leases when no wake message came: messages may be lost."""
ANNOUNCE_S = 2.0


class Worker:
    """Serves one pool: ``slots`` jobs in the engine at once, delivery of earlier ones beside."""

    def __init__(
        self,
        model: Model,
        family: Family,
        cell: Cell,
        store: ArtifactStore,
        replica: str,
        settings: JobSettings | None = None,
    ) -> None:
        self._model = model
        self._family = family
        self._store = store
        self._settings = settings or JobSettings()
        self._cell = cell
        self._leases = Leases(cell, model.id, replica, self._settings)
        self._runs: dict[str, JobRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_engine = 0
        self._leasing = True
        self._born = time.monotonic()
        self._wake = asyncio.Event()
        self._slots_changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._engine = Engine(family, self._emit, model.checkpoint)
        self._engine.start()
        self._leasing_ended = asyncio.Event()

    def check(self) -> None:
        """Raise if this process can no longer serve: the engine is dead, or hangs in one call."""
        if not self._engine.alive:
            raise RuntimeError("the engine's thread is dead")
        # Its jobs are lost by now; only a new process gets the device back.
        patience_s = max(
            (run.lease_s for run in self._runs.values()), default=self._settings.lease_s_min
        )
        if self._engine.busy_s > patience_s:
            raise RuntimeError(f"the engine hangs: no step for {self._engine.busy_s:.0f} s")

    async def run(self) -> None:
        """Serve until cancelled. Redis may go away and come back meanwhile.

        Raises :class:`ConfigError` if what it holds is of another version.
        """
        await until_answered(self._cell.check_schema)
        await asyncio.to_thread(remove_orphans)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lease_forever())
            group.create_task(self._listen_forever())
            group.create_task(self._announce_forever())

    async def drain(self, timeout_s: float) -> None:
        """Stop leasing, hand every job in the engine back, let deliveries finish."""
        deadline = self._loop.time() + timeout_s
        self._leasing = False
        self._wake.set()
        # A lease under way may still bring a job, which must be handed back as well.
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._leasing_ended.wait()
        await asyncio.to_thread(self._engine.close, max(0.0, deadline - self._loop.time()))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - self._loop.time()))
        try:
            await self._leases.retire()
        except ServiceUnavailable as error:
            log.warning("cannot retire: %s", error)

    async def _lease_forever(self) -> None:
        try:
            while self._leasing:
                await self._lease_or_wait()
        finally:
            self._leasing_ended.set()

    async def _lease_or_wait(self) -> None:
        self._wake.clear()
        # One delivery may run beside a full engine; more would only pile up frames.
        room = self._free > 0 and len(self._runs) <= self._model.placement.slots
        job = await self._lease() if room else None
        if job is not None:
            self._start(job)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()

    @property
    def _free(self) -> int:
        return self._model.placement.slots - self._in_engine

    async def _lease(self) -> Job | None:
        lease_s = max(self._settings.lease_s_min, LEASE_PER_STAGE * self._model.cost.encode_s)
        try:
            return await self._leases.lease(int(1000 * lease_s), busy=self._in_engine > 0)
        except ServiceUnavailable as error:
            log.warning("cannot lease: %s", error)
            return None

    async def _listen_forever(self) -> None:
        while True:
            try:
                async with self._leases.signals() as signals:
                    while True:
                        drop = await signals.next(timeout_s=POLL_S)
                        if drop:
                            self._engine.drop(f"{drop.job_id}/{drop.fence}")
                        else:
                            self._wake.set()
            except ServiceUnavailable as error:
                log.warning("cannot listen: %s", error)
                await asyncio.sleep(POLL_S)

    async def _announce_forever(self) -> None:
        while self._leasing:
            try:
                await self._leases.announce(
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    slots=self._model.placement.slots,
                    free=self._free,
                    age_ms=int(1000 * (time.monotonic() - self._born)),
                )
            except ServiceUnavailable as error:
                log.warning("cannot announce: %s", error)
            # At once when a slot was taken or freed: others decide by it.
            self._slots_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_S):
                    await self._slots_changed.wait()

    def _emit(self, event: Event) -> None:
        """Called on the engine's thread."""
        self._loop.call_soon_threadsafe(self._receive, event)

    def _receive(self, event: Event) -> None:
        if run := self._runs.get(event.run_id):
            run.receive(event)

    def _start(self, job: Job) -> None:
        run = JobRun(
            job,
            estimate=estimate(self._model, job.spec),
            fingerprint=self._family.fingerprint,
            lease_s_min=self._settings.lease_s_min,
            leases=self._leases,
            store=self._store,
            engine=self._engine,
            left_engine=self._freed,
        )
        self._runs[run.id] = run
        self._in_engine += 1
        self._slots_changed.set()
        task = asyncio.create_task(self._serve(run), name=run.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _freed(self) -> None:
        self._in_engine -= 1
        self._slots_changed.set()
        self._wake.set()

    async def _serve(self, run: JobRun) -> None:
        await run.serve()
        del self._runs[run.id]
        self._wake.set()
