"""``/v1/admin/autoscale``: how many replicas each pool should have, and why. For the operator."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from serving.api.auth import require_admin
from serving.api.services import ServicesDep
from serving.jobs import DECISIONS_MAX, Decided
from serving.plan.catalog import Model, ScalingPolicy
from serving.plan.classes import CLASSES

router = APIRouter(
    prefix="/v1/admin/autoscale", tags=["operation"], dependencies=[Depends(require_admin)]
)


@router.get("")
async def last(services: ServicesDep, model: str | None = None) -> dict[str, Any]:
    """The last decision of the autoscaler about each model, or about this one: null while there is
    none. A model whose ``scaling`` is null always has ``replicas``. All times are seconds."""
    models = [services.catalog.resolve(model)] if model else services.catalog.models.values()
    decisions = await services.decisions.last()
    pools = [_pool(each, services.scaled.get(each.id), decisions.get(each.id)) for each in models]
    return {"object": "autoscale", "pools": pools}


@router.get("/history")
async def history(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=DECISIONS_MAX)] = 300
) -> dict[str, Any]:
    """The latest decisions, the newest first: by model its replicas and what there was to do."""
    lines = await services.decisions.history(limit)
    return {"object": "list", "data": [line.model_dump() for line in lines]}


def _pool(model: Model, scaling: ScalingPolicy | None, decided: Decided | None) -> dict[str, Any]:
    """``scaling`` is shown as it was when it was decided, which may be newer than our catalog."""
    if scaling is None:
        replicas = model.placement.replicas
        return {"model": model.id, "scaling": None, "replicas": replicas, "decision": None}
    knobs = (decided and decided.scaling) or scaling
    return {
        "model": model.id,
        "scaling": knobs.model_dump(),
        "replicas": None,
        "decision": decided and _decision(model, decided),
    }


def _decision(model: Model, decided: Decided) -> dict[str, Any]:
    """The sample's classes in the order of precedence, each with its objective."""
    fields = decided.model_dump(exclude={"sample", "objectives_s"})
    sample = decided.sample.model_dump() if decided.sample else {}
    seen = sample.pop("classes", {})
    objectives_s: dict[str, float | None] = {
        **{str(name): policy.first_step_s for name, policy in model.classes.items()},
        **decided.objectives_s,
    }
    classes = [
        {"class": str(name), "objective_s": objectives_s.get(name), **seen[name]}
        for name in CLASSES
        if name in seen
    ]
    return {**fields, "sample": sample or None, "classes": classes}
