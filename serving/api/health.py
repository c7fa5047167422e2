"""``/healthz``, ``/readyz`` and ``/metrics``: for machines that look after us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.api.services import ServicesDep
from serving.jobs import TERMINAL, PoolState

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: ServicesDep) -> dict[str, str]:
    """The job store answers, so jobs can be accepted and shown: 503 while it is away."""
    await services.queue.ping()
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(services: ServicesDep) -> Response:
    """The state of the queue in Redis, so every ingress replica answers the same."""
    registry = CollectorRegistry()
    registry.register(PoolCollector(await services.queue.pools(list(services.catalog.models))))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class PoolCollector(Collector):
    """Counts of each pool at one moment as metric families."""

    def __init__(self, pools: Mapping[str, PoolState]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily(
            "reelserve_jobs_queued", "Jobs that wait for a replica.", labels=["model"]
        )
        running = GaugeMetricFamily(
            "reelserve_jobs_in_progress", "Jobs leased to a replica.", labels=["model"]
        )
        oldest = GaugeMetricFamily(
            "reelserve_queue_oldest_wait_seconds",
            "How long the job at the head of the queue has waited.",
            labels=["model"],
        )
        ended = CounterMetricFamily(
            "reelserve_jobs_ended",
            "Jobs that reached a terminal state.",
            labels=["model", "status"],
        )
        events = CounterMetricFamily(
            "reelserve_job_events",
            "What happened to running jobs: yielded, lease_lost, resumed, and checkpoint_… for "
            "checkpoints that could not be used.",
            labels=["model", "event"],
        )
        replicas = GaugeMetricFamily(
            "reelserve_replicas", "Replicas that announced themselves lately.", labels=["model"]
        )
        for model, pool in self._pools.items():
            queued.add_metric([model], pool.queued)
            running.add_metric([model], pool.in_progress)
            oldest.add_metric([model], pool.oldest_ms / 1000)
            for state in sorted(TERMINAL):
                ended.add_metric([model, state], pool.ended.get(state, 0))
            for event, times in sorted(pool.counts.items()):
                events.add_metric([model, event], times)
            replicas.add_metric([model], len(pool.replicas))
        yield from (queued, running, oldest, ended, events, replicas)
