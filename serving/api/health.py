"""``/healthz``, ``/readyz`` and ``/metrics``: for machines that look after us."""

from __future__ import annotations

import asyncio

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
from serving.plan.errors import ReelserveError, ServiceUnavailable

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: ServicesDep) -> dict[str, str]:
    """The job store answers, so jobs can be accepted and shown: 503 while it is away, and until
    every model server was found to have what the catalog says. One that is lost later is told of,
    by the name of its model (``triton/upscale``, say), and does not take the rest with it."""
    await services.queue.ping()
    speakers = services.speech.speakers if services.speech else {}
    asked = [
        *((name, speaker.ready()) for name, speaker in speakers.items()),
        *((upscaler.id, upscaler.ready()) for upscaler in services.upscalers),
    ]
    answers = await asyncio.gather(*(ready for _, ready in asked), return_exceptions=True)
    unfit, away = [], []
    for (name, _), ready in zip(asked, answers, strict=True):
        if isinstance(ready, ReelserveError):
            unfit.append(ready)
        elif isinstance(ready, BaseException):
            raise ready
        elif not ready:
            away.append(name)
    if unfit:
        code = unfit[0].code
        raise ServiceUnavailable(" ".join(error.message for error in unfit), code=code)
    return {"status": "ready", **dict.fromkeys(away, "away")}


@router.get("/metrics")
async def metrics(services: ServicesDep) -> Response:
    """The state of the queue in Redis, so every ingress replica answers the same."""
    models, ledger = services.catalog.models, services.ledger
    pools = await services.queue.pools(list(services.offered))
    registry = CollectorRegistry()
    registry.register(JobCollector(pools, services.offered))
    registry.register(FleetCollector(pools))
    registry.register(CostCollector([await services.costs.of(each) for each in models.values()]))
    registry.register(CreditCollector(await ledger.sums(), await ledger.verified()))
    registry.register(AutoscaleCollector(services.scaled, await services.decisions.last()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
