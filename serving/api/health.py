"""``/healthz``, ``/readyz`` and ``/metrics``: for machines that look after us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.api.autoscale_metrics import AutoscaleCollector
from serving.api.services import ServicesDep
from serving.jobs import TERMINAL, PoolState
from serving.plan.costs import PoolCosts

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
    models = services.catalog.models.values()
    registry.register(CostCollector([await services.costs.of(model) for model in models]))
    registry.register(AutoscaleCollector(services.catalog.models, await services.decisions.last()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


TALLIES = {
    "prompt_cache_hits": "Prompts whose embeddings the replica still had.",
    "prompt_cache_misses": "Prompts that had to be encoded.",
}
"""What replicas count, by the name they count it under."""


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
            "Age of the oldest job that waits.",
            labels=["model"],
        )
        ended = CounterMetricFamily(
            "reelserve_jobs_ended",
            "Jobs that reached a terminal state.",
            labels=["model", "status"],
        )
        events = CounterMetricFamily(
            "reelserve_job_events",
            "What happened to running jobs: yielded, preempted, lease_lost, resumed, "
            "resumed_from_memory (also counted as resumed), and checkpoint_… for checkpoints that "
            "could not be used.",
            labels=["model", "event"],
        )
        replicas = GaugeMetricFamily(
            "reelserve_replicas", "Replicas that announced themselves lately.", labels=["model"]
        )
        tallies = {
            name: CounterMetricFamily(f"reelserve_{name}", text, labels=["model"])
            for name, text in TALLIES.items()
        }
        for model, pool in self._pools.items():
            queued.add_metric([model], pool.queued)
            running.add_metric([model], pool.in_progress)
            oldest.add_metric([model], pool.oldest_ms / 1000)
            for state in sorted(TERMINAL):
                ended.add_metric([model, state], pool.ended.get(state, 0))
            for event, times in sorted(pool.counts.items()):
                events.add_metric([model, event], times)
            replicas.add_metric([model], len(pool.replicas))
            for name, family in tallies.items():
                family.add_metric([model], pool.tallies.get(name, 0))
        yield from (queued, running, oldest, ended, events, replicas, *tallies.values())


class CostCollector(Collector):
    """What work costs, as learned, and how far predictions of it were off. There are at most 16
    devices to a model, and 32 shapes to a device."""

    def __init__(self, pools: Sequence[PoolCosts]) -> None:
        self._learned = [costs for pool in pools for costs in pool.learned.values()]

    def collect(self) -> Iterator[Metric]:
        where = ["model", "device", "stage"]
        predictions = CounterMetricFamily(
            "reelserve_cost_predictions",
            "Stages of jobs (encode, step, decode, deliver) that took what they took after the "
            "cost model had predicted it.",
            labels=where,
        )
        error = GaugeMetricFamily(
            "reelserve_cost_error_ratio",
            "Mean of |predicted - took| / took over the latest predictions.",
            labels=where,
        )
        bias = GaugeMetricFamily(
            "reelserve_cost_bias_ratio",
            "Mean of (predicted - took) / took over the latest predictions: above 0, they are "
            "too long.",
            labels=where,
        )
        step = GaugeMetricFamily(
            "reelserve_cost_step_seconds",
            "What a denoising step takes, learned, by latent tokens of a row and rows of the "
            "forward, for the shapes seen latest.",
            labels=["model", "device", "tokens", "rows"],
        )
        for costs in self._learned:
            labels = [costs.model.id, costs.device]
            for stage, accuracy in costs.accuracy().items():
                predictions.add_metric([*labels, stage], accuracy.predictions)
                error.add_metric([*labels, stage], accuracy.error)
                bias.add_metric([*labels, stage], accuracy.bias)
            for (tokens, rows), seconds in costs.learned_steps().items():
                step.add_metric([*labels, str(tokens), str(rows)], seconds)
        yield from (predictions, error, bias, step)
