"""A model replica as Ray Serve sees it."""

from __future__ import annotations

import logging
import os
import sys

import torch

from deployments.actor import actor_id
from deployments.connections import open_backends
from deployments.engine_metrics import EngineMetrics
from deployments.hosted_worker import HostedWorker, nothing
from deployments.logs import set_up_logs
from deployments.settings import StackSettings
from deployments.starting import process_age_s, starting
from deployments.tracing import open_tracer
from deployments.worker import Worker
from serving.jobs import JobSettings
from serving.models.load import load_family
from serving.models.triton_upscaler import TritonUpscaler
from serving.plan.drain import drain_s

log = logging.getLogger(__name__)

LINUX = sys.platform == "linux"


class ModelReplica(HostedWorker):
    """Hosts one :class:`Worker`."""

    def __init__(self, model_id: str) -> None:
        settings, replica = StackSettings.load(), actor_id()
        set_up_logs(settings.logs, role="replica", model=model_id, replica=replica)
        model = settings.catalog().models[model_id]
        # Ray sets OMP_NUM_THREADS to the logical CPUs it hands out, which only place replicas.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1)
        with starting(settings, model.id, replica):
            family = load_family(model, settings.models_folder)
            backends = open_backends(settings, open_tracer(settings, "replica", replica))
            seat = model.upscaler
            upscaler = TritonUpscaler(seat) if seat and model.upscales else None
            worker = Worker(
                model,
                family,
                backends.cell,
                backends.store,
                replica,
                JobSettings(),
                backends.tracer,
                start_s=process_age_s(),
                upscaler=upscaler,
            )
        metrics = EngineMetrics(model.id, worker.costs.device)
        self._host(
            worker,
            backends,
            replica=replica,
            leave_dir=settings.leave_dir,
            drain_s=lambda: drain_s(model, [worker.costs]),
            beside=metrics.publish_forever(worker.counts),
            close=upscaler.close if upscaler else nothing,
        )
