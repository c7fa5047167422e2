"""The worker inside a model replica: runs the jobs of its pool on the engine.

:mod:`deployments.replica` is the thin shell that Ray Serve sees.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from deployments.checkpoints import Held
from deployments.engine_counts import EngineCounts
from deployments.pool_worker import PoolWorker
from deployments.run import LEASE_PER_STAGE, JobRun
from serving.engine import Engine, Event
from serving.jobs import Cell, CostStore, JobSettings, Lease, Rows
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

CHEAP_RATIO = 0.1
"""A job joins a forward at once that gets longer by no more than this part of itself."""
LEARN_S = 3.0
"""How often the cost model takes in what was observed, and is shared with the other replicas."""


class Worker(PoolWorker[JobRun]):
    """One engine, and what its work costs."""

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
        self.costs = CostModel(model, device_class(device_of(model)))
        slots, device = model.placement.slots, self.costs.device
        super().__init__(model, slots, cell, replica, settings, device=device, start_s=start_s)
        self._model = model
        self._family = family
        self._store = store
        self._tracer = tracer
        self._upscaler = upscaler
        self._held = Held()
        self.counts = EngineCounts()
        self._cost_store = CostStore(cell)
        self._tallied: dict[str, int] = {}
        self._tallying = asyncio.Lock()
        self._engine = Engine(family, self._emit, model.checkpoint, model.preview)
        self._engine.start()

    def check(self) -> None:
        """Raise if this process can no longer serve: the engine is dead, or hangs in one call."""
        if not self._engine.alive:
            raise RuntimeError("the engine's thread is dead")
        # Its jobs are lost by now; only a new process gets the device back.
        patience_s = max((run.lease_s for run in self._runs.values()), default=self._lease_s_min())
        if self._engine.busy_s > patience_s:
            raise RuntimeError(f"the engine hangs: no step for {self._engine.busy_s:.0f} s")

    @property
    def _closing(self) -> bool:
        return self._engine.closing

    def _beside(self) -> Sequence[Coroutine[Any, Any, None]]:
        return [self._learn_forever()]

    async def _stop(self, deadline: float) -> None:
        was_alive = self._engine.alive
        steps = self._engine.stop()
        log.info("drains, with %d jobs in the engine", len(steps))
        for run_id, step in steps.items():
            if run := self._runs.get(run_id):
                run.drains(step)
        # What a lease under way still brings the engine refuses: it goes back as well.
        await self._lease_no_more(deadline)
        if was_alive:
            await asyncio.to_thread(self._engine.close, max(0.0, deadline - self._loop.time()))
        else:
            self._give_up_on_the_engine()

    def _give_up_on_the_engine(self) -> None:
        """Only deliveries can still end. The other jobs' leases run out, which counts as an
        attempt: one of them may be what the engine died of."""
        for task in self._tasks:
            run = self._runs.get(task.get_name())
            if run is not None and run.resident is not None:
                task.cancel()

    def _drop(self, job_id: str, fence: int) -> None:
        self._engine.drop(f"{job_id}/{fence}")

    def _lease_s(self) -> float:
        return max(self._settings.lease_s_min, LEASE_PER_STAGE * self.costs.encode_s)

    def _shapes(self) -> Mapping[str, Rows]:
        rows: Counter[str] = Counter()
        tokens: dict[str, int] = {}
        for run in self._runs.values():
            if run.denoises:
                spec = run.job.clip
                rows[spec.shape] += spec.rows
                tokens[spec.shape] = spec.tokens(self._model)
        return {shape: self._rows(tokens[shape], rows[shape]) for shape in rows}

    def _rows(self, tokens: int, rows: int) -> Rows:
        """How many rows a forward that has ``rows`` may come to. A job adds one or two."""
        cheap = [
            rows + added
            for added in (1, 2)
            if self.costs.marginal_step_ratio(tokens, rows, added) <= CHEAP_RATIO
        ]
        return Rows(cheap=max(cheap, default=rows), most=self._model.batch.rows_max(tokens))

    async def _report(self) -> None:
        """What the family counted since the last report that was answered."""
        async with self._tallying:
            counters = dict(self._family.counters)
            more = {name: n - self._tallied.get(name, 0) for name, n in counters.items()}
            if any(more.values()):
                await self._leases.tally(more)
                self._tallied = counters

    async def _retire(self) -> None:
        await self._cost_store.sync(self.costs)
        await super()._retire()

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

    def _run_of(self, lease: Lease) -> JobRun:
        return JobRun(
            lease,
            costs=self.costs,
            fingerprint=self._family.fingerprint,
            lease_s_min=self._lease_s_min,
            leases=self._leases,
            store=self._store,
            held=self._held,
            engine=self._engine,
            left_slot=self._freed,
            tracer=self._tracer,
            upscaler=self._upscaler,
        )

    def _lease_s_min(self) -> float:
        """While the engine compiles for one run, all of them wait."""
        compile_s = max((run.compile_s for run in self._runs.values()), default=0.0)
        return max(self._settings.lease_s_min, compile_s)

    def _take(self, slots: int) -> None:
        super()._take(slots)
        self.counts.runs = self._taken
