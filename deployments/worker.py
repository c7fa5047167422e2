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
from collections import Counter
from contextlib import suppress

from deployments.checkpoints import Held
from deployments.clip_files import remove_orphans
from deployments.engine_counts import EngineCounts
from deployments.patience import until_answered
from deployments.run import LEASE_PER_STAGE, JobRun
from serving.engine import Engine, Event
from serving.jobs import (
    Cell,
    CostStore,
    Drop,
    JobSettings,
    Lease,
    Leases,
    ReplicaStatus,
    Room,
    Rows,
    Wake,
)
from serving.media import ArtifactStore
from serving.models.family import Family
from serving.models.fingerprint import device_class
from serving.models.load import device_of
from serving.models.triton_upscaler import TritonUpscaler
from serving.plan.catalog import Model
from serving.plan.costs import CostModel
from serving.plan.errors import ServiceUnavailable
from serving.tracing import NO_TRACER, Tracer

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often an idle worker leases when no wake message came: messages may be lost."""
LEFT_S = 0.5
"""When it asks again for what woke it: a job is left so long to a replica that would do better."""
ANNOUNCE_S = 2.0
BUSY_PAUSE_S = 0.05
"""Between two questions of a worker that runs something and got nothing."""
CHEAP_RATIO = 0.1
"""A job joins a forward at once that gets longer by no more than this part of itself."""
LEARN_S = 3.0
"""How often the cost model takes in what was observed, and is shared with the other replicas."""


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
        tracer: Tracer = NO_TRACER,
        *,
        start_s: float | None = None,
        upscaler: TritonUpscaler | None = None,
    ) -> None:
        """``start_s``: how long it took to get here, if a replica was started for it."""
        self._model = model
        self._family = family
        self._store = store
        self._settings = settings or JobSettings()
        self._cell = cell
        self._tracer = tracer
        self._upscaler = upscaler
        self._leases = Leases(cell, model.id, replica, self._settings, model.classes)
        self._held = Held()
        self.costs = CostModel(model, device_class(device_of(model)))
        self.counts = EngineCounts()
        self._cost_store = CostStore(cell)
        self._runs: dict[str, JobRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_engine = 0
        self._born = time.monotonic() - (start_s or 0.0)
        self._start_ms = None if start_s is None else round(1000 * start_s)
        self._retired = False
        self._announcing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._announce_now = asyncio.Event()
        self._tallied: dict[str, int] = {}
        self._tallying = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._engine = Engine(family, self._emit, model.checkpoint, model.preview)
        self._engine.start()
        self._leasing_ended = asyncio.Event()

    def check(self) -> None:
        """Raise if this process can no longer serve: the engine is dead, or hangs in one call."""
        if not self._engine.alive:
            raise RuntimeError("the engine's thread is dead")
        # Its jobs are lost by now; only a new process gets the device back.
        patience_s = max((run.lease_s for run in self._runs.values()), default=self._lease_s_min())
        if self._engine.busy_s > patience_s:
            raise RuntimeError(f"the engine hangs: no step for {self._engine.busy_s:.0f} s")

    async def run(self) -> None:
        """Serve until cancelled. Redis may go away and come back meanwhile.

        Raises :class:`ConfigError` if what it holds is of another version.
        """
        try:
            await until_answered(self._cell.check_schema)
            await asyncio.to_thread(remove_orphans)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lease_forever())
                group.create_task(self._listen_forever())
                group.create_task(self._announce_forever())
                group.create_task(self._learn_forever())
        finally:
            self._leasing_ended.set()

    async def drain(self, timeout_s: float) -> None:
        """Stop leasing, and say so; hand every job in the engine back, let deliveries finish."""
        deadline = self._loop.time() + timeout_s
        was_alive = self._engine.alive
        steps = self._engine.stop()
        self._wake.set()
        self._announce_now.set()
        log.info("drains, with %d jobs in the engine", len(steps))
        for run_id, step in steps.items():
            if run := self._runs.get(run_id):
                run.drains(step)
        # A lease under way may still bring a job, which the engine refuses: it goes back as well.
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._leasing_ended.wait()
        if was_alive:
            await asyncio.to_thread(self._engine.close, max(0.0, deadline - self._loop.time()))
        else:
            self._give_up_on_the_engine()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - self._loop.time()))
        try:
            await self._tally()
            await self._cost_store.sync(self.costs)
            await self._retire()
        except ServiceUnavailable as error:
            log.warning("cannot retire: %s", error)

    def _give_up_on_the_engine(self) -> None:
        """Only deliveries can still end. The other jobs' leases run out, which counts as an
        attempt: one of them may be what the engine died of."""
        for task in self._tasks:
            run = self._runs.get(task.get_name())
            if run is not None and run.resident is not None:
                task.cancel()

    async def _lease_forever(self) -> None:
        while not self._engine.closing:
            await self._lease_or_wait()
        self._leasing_ended.set()

    async def _lease_or_wait(self) -> None:
        pause_s = LEFT_S if self._wake.is_set() else POLL_S
        self._wake.clear()
        # One delivery, or one run that is being stopped for another, may be beside a full engine;
        # more deliveries would only pile up frames.
        room = self._free >= 0 and len(self._runs) <= self._model.placement.slots
        lease = await self._lease() if room and not self._has_last_attempt else None
        if lease is not None:
            self._start(lease)
            return
        if self._runs:  # most jobs are of no use beside others: do not ask at every wake
            await asyncio.sleep(BUSY_PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()

    @property
    def _free(self) -> int:
        """Free slots; -1 while a run is being stopped for one that has its lease already."""
        return self._model.placement.slots - self._in_engine

    @property
    def _has_last_attempt(self) -> bool:
        """Whether it runs a job that lost every replica before: nobody should be beside it."""
        last = self._settings.attempts_max
        return last > 1 and any(run.job.attempts >= last for run in self._runs.values())

    async def _lease(self) -> Lease | None:
        lease_s = max(self._settings.lease_s_min, LEASE_PER_STAGE * self.costs.encode_s)
        try:
            return await self._leases.lease(int(1000 * lease_s), self._room())
        except ServiceUnavailable as error:
            log.warning("cannot lease: %s", error)
            return None

    def _room(self) -> Room:
        resident = [run.resident for run in self._runs.values()]
        rows: Counter[str] = Counter()
        tokens: dict[str, int] = {}
        for run in self._runs.values():
            if run.denoises:
                spec = run.job.spec
                rows[spec.shape] += spec.rows
                tokens[spec.shape] = spec.tokens(self._model)
        return Room(
            free=self._free,
            runs=[each for each in resident if each],
            shapes={shape: self._rows(tokens[shape], rows[shape]) for shape in rows},
            delivering=sum(each is None for each in resident),
        )

    def _rows(self, tokens: int, rows: int) -> Rows:
        """How many rows a forward that has ``rows`` may come to. A job adds one or two."""
        cheap = [
            rows + added
            for added in (1, 2)
            if self.costs.marginal_step_ratio(tokens, rows, added) <= CHEAP_RATIO
        ]
        return Rows(cheap=max(cheap, default=rows), most=self._model.batch.rows_max(tokens))

    async def _listen_forever(self) -> None:
        while True:
            try:
                async with self._leases.signals() as signals:
                    while True:
                        match await signals.next(timeout_s=POLL_S):
                            case Drop(job_id, fence):
                                self._engine.drop(f"{job_id}/{fence}")
                            case Wake() as wake if self._may_take(wake):
                                self._wake.set()
            except ServiceUnavailable as error:
                log.warning("cannot listen: %s", error)
                await asyncio.sleep(POLL_S)

    def _may_take(self, wake: Wake) -> bool:
        """Spares Redis the questions of full replicas that no job could enter."""
        quantum_s = self._settings.quantum_s
        return self._free > 0 or any(
            run.gives_way_to(wake.job, wake.now_ms, quantum_s) for run in self._runs.values()
        )

    async def _announce_forever(self) -> None:
        while not self._retired:
            self._announce_now.clear()
            try:
                await self._announce()
                await self._tally()
            except ServiceUnavailable as error:
                log.warning("cannot announce: %s", error)
            # At once when a slot was taken or freed: others decide by it.
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_S):
                    await self._announce_now.wait()

    async def _announce(self) -> None:
        async with self._announcing:
            if self._retired:
                return
            await self._leases.announce(
                host=socket.gethostname(),
                pid=os.getpid(),
                device=self.costs.device,
                slots=self._model.placement.slots,
                free=max(0, self._free),
                age_ms=int(1000 * (time.monotonic() - self._born)),
                state=ReplicaStatus.DRAINING if self._engine.closing else None,
                start_ms=self._start_ms,
            )
            self._start_ms = None

    async def _retire(self) -> None:
        """The last word: whoever announced after it would come back."""
        async with self._announcing:
            self._retired = True
            await self._leases.retire()

    async def _tally(self) -> None:
        """Report what the family counted since the last report that was answered."""
        async with self._tallying:
            counters = dict(self._family.counters)
            more = {name: n - self._tallied.get(name, 0) for name, n in counters.items()}
            if any(more.values()):
                await self._leases.tally(more)
                self._tallied = counters

    async def _learn_forever(self) -> None:
        while True:
            try:
                await self._cost_store.sync(self.costs)
            except ServiceUnavailable as error:
                log.warning("cannot share what work costs: %s", error)
            await asyncio.sleep(LEARN_S)

    def _emit(self, event: Event) -> None:
        """Called on the engine's thread."""
        self._loop.call_soon_threadsafe(self._receive, event)

    def _receive(self, event: Event) -> None:
        if run := self._runs.get(event.run_id):
            self.counts.count(event, run.tokens, self._model.batch)
            run.receive(event)

    def _start(self, lease: Lease) -> None:
        if lease.preempts:
            job_id, fence = lease.preempts
            if victim := self._runs.get(f"{job_id}/{fence}"):
                victim.preempt()
        run = JobRun(
            lease,
            costs=self.costs,
            fingerprint=self._family.fingerprint,
            lease_s_min=self._lease_s_min,
            leases=self._leases,
            store=self._store,
            held=self._held,
            engine=self._engine,
            left_engine=self._freed,
            tracer=self._tracer,
            upscaler=self._upscaler,
        )
        self._runs[run.id] = run
        self._in_engine += 1
        self.counts.runs = self._in_engine
        self._announce_now.set()
        task = asyncio.create_task(self._serve(run), name=run.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lease_s_min(self) -> float:
        """While the engine compiles for one run, all of them wait."""
        compile_s = max((run.compile_s for run in self._runs.values()), default=0.0)
        return max(self._settings.lease_s_min, compile_s)

    def _freed(self) -> None:
        self._in_engine -= 1
        self.counts.runs = self._in_engine
        self._announce_now.set()
        self._wake.set()

    async def _serve(self, run: JobRun) -> None:
        await run.serve()
        del self._runs[run.id]
        self._wake.set()
