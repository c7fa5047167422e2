"""A model replica as Ray Serve sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from deployments.actor import actor_id
from deployments.connections import open_backends
from deployments.engine_metrics import EngineMetrics
from deployments.leaving import here, told_to_leave
from deployments.logs import set_up_logs
from deployments.patience import end
from deployments.settings import StackSettings
from deployments.starting import process_age_s, starting
from deployments.tracing import open_tracer
from deployments.worker import Worker
from serving.jobs import JobSettings
from serving.models.load import load_family
from serving.plan.drain import drain_s

log = logging.getLogger(__name__)

LINUX = sys.platform == "linux"


class ModelReplica:
    """Hosts one :class:`Worker`. Serve places it, watches it and takes it away again.

    It answers no requests: work comes from the queue, so nothing is lost with a router.
    """

    def __init__(self, model_id: str) -> None:
        settings, replica = StackSettings.load(), actor_id()
        set_up_logs(settings.logs, role="replica", model=model_id, replica=replica)
        model = settings.catalog().models[model_id]
        # Ray sets OMP_NUM_THREADS to the logical CPUs it hands out, which only place replicas.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1)
        with starting(settings, model.id, replica):
            family = load_family(model, settings.models_folder)
            self._backends = open_backends(settings, open_tracer(settings, "replica", replica))
            self._worker = Worker(
                model,
                family,
                self._backends.cell,
                self._backends.store,
                replica,
                JobSettings(),
                self._backends.tracer,
                start_s=process_age_s(),
            )
        self._model = model
        metrics = EngineMetrics(model.id, self._worker.costs.device)
        # Serve calls the constructor on the replica's own event loop.
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._worker.run(), name="worker")
        self._publishing = loop.create_task(
            metrics.publish_forever(self._worker.counts), name="engine metrics"
        )
        self._draining: asyncio.Task[None] | None = None
        self._here = ExitStack()
        self._leaving: asyncio.Task[None] | None = None
        if folder := settings.leave_dir:
            self._here.enter_context(here(folder, replica))
            self._leaving = loop.create_task(self._leave(folder), name="leaving")

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises. One that leaves with its node is well: what
        took its place here would leave too."""
        if self._draining is not None:
            return
        if self._task.done():
            raise RuntimeError(f"the worker ended: {self._task}")
        self._worker.check()

    async def __del__(self) -> None:
        """Serve's drain hook: hand the jobs back before the process goes."""
        if not hasattr(self, "_worker"):
            return
        await self._drained()
        await end(self._task, self._publishing, *filter(None, [self._leaving]))
        self._here.close()
        await self._backends.close()

    async def _leave(self, folder: Path) -> None:
        await told_to_leave(folder)
        try:
            await self._drained()
        finally:
            self._here.close()

    async def _drained(self) -> None:
        """Whoever asks first begins it, and all wait for the same end."""
        if self._draining is None:
            drain = self._worker.drain(drain_s(self._model, [self._worker.costs]))
            self._draining = asyncio.create_task(drain, name="drain")
        await asyncio.shield(self._draining)
