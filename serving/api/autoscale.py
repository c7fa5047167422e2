"""``/v1/admin/autoscale``: how many replicas each pool should have, and why. For the operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Query

from serving.api.auth import require_admin
from serving.api.services import ServicesDep
from serving.jobs import DECISIONS_MAX, Decided
from serving.plan.catalog import Model, ScalingPolicy
from serving.plan.classes import CLASSES
from serving.plan.served import ServedPool

router = APIRouter(
    prefix="/v1/admin/autoscale", tags=["operation"], dependencies=[Depends(require_admin)]
)


@router.get("")
async def last(services: ServicesDep, model: str | None = None) -> dict[str, Any]:
    """The last decision of the autoscaler about each model, or about this one: null while there is
    none. A model whose ``scaling`` is null always has ``replicas``. Where there is a ``server``, it
    does the work and is not ours to scale: the decision says how many there should be. All times
    are seconds."""
    pools = [
        *map(_Pool.of, services.catalog.models.values()),
        *map(_Pool.served, services.served.values() if services.autoscaling else ()),
    ]
    if model:
        name = model if model in services.served else services.catalog.resolve(model).id
        pools = [pool for pool in pools if pool.id == name]
    decisions = await services.decisions.last()
    shown = [_shown(each, services.scaled.get(each.id), decisions.get(each.id)) for each in pools]
    return {"object": "autoscale", "pools": shown}


@router.get("/history")
async def history(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=DECISIONS_MAX)] = 300
) -> dict[str, Any]:
    """The latest decisions, the newest first: by model its replicas and what there was to do."""
    lines = await services.decisions.history(limit)
    return {"object": "list", "data": [line.model_dump() for line in lines]}


@dataclass(frozen=True)
class _Pool:
    """What the catalog says of a pool: a model of ours, or what a ``server`` does."""

    id: str
    objectives_s: Mapping[str, float | None]
    replicas: int | None = None
    server: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: Model) -> Self:
        objectives_s = {str(name): each.first_step_s for name, each in model.classes.items()}
        return cls(model.id, objectives_s, model.placement.replicas)

    @classmethod
    def served(cls, pool: ServedPool) -> Self:
        server = {"url": pool.url, "model": pool.model, "request_s": pool.request_s}
        return cls(pool.id, pool.objectives_s, server=server)


def _shown(pool: _Pool, scaling: ScalingPolicy | None, decided: Decided | None) -> dict[str, Any]:
    """``scaling`` is shown as it was when it was decided, which may be newer than our catalog."""
    known = {"model": pool.id, "server": pool.server}
    if scaling is None:
        return {**known, "scaling": None, "replicas": pool.replicas, "decision": None}
    knobs = (decided and decided.scaling) or scaling
    return {
        **known,
        "scaling": knobs.model_dump(),
        "replicas": None,
        "decision": decided and _decision(pool, decided),
    }


def _decision(pool: _Pool, decided: Decided) -> dict[str, Any]:
    """The sample's classes in the order of precedence, each with its objective."""
    fields = decided.model_dump(exclude={"sample", "objectives_s"})
    sample = decided.sample.model_dump() if decided.sample else {}
    seen = sample.pop("classes", {})
    objectives_s: dict[str, float | None] = {**pool.objectives_s, **decided.objectives_s}
    classes = [
        {"class": str(name), "objective_s": objectives_s.get(name), **seen[name]}
        for name in CLASSES
        if name in seen
    ]
    return {**fields, "sample": sample or None, "classes": classes}
