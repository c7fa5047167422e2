"""``/healthz``, ``/readyz`` and ``/metrics``: for machines that look after us."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from serving.api.metrics import (
    AutoscaleCollector,
    CostCollector,
    CreditCollector,
    FleetCollector,
    JobCollector,
)
from serving.api.services import ServicesDep

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
    models = services.catalog.models
    pools = await services.queue.pools(list(models))
    registry = CollectorRegistry()
    registry.register(JobCollector(pools, models))
    registry.register(FleetCollector(pools))
    registry.register(CostCollector([await services.costs.of(each) for each in models.values()]))
    registry.register(CreditCollector(await services.ledger.sums()))
    registry.register(AutoscaleCollector(services.scaled, await services.decisions.last()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
