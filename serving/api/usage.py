"""``/v1/usage``: what the caller may still do, before submitting anything."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from quota.tiers import Surge
from serving.api.auth import Caller, Scope, require
from serving.api.quota import Grant, left
from serving.api.services import ServicesDep
from serving.plan.classes import ServiceClass

router = APIRouter(prefix="/v1/usage", tags=["usage"])
MemberDep = Annotated[Caller, Depends(require(Scope.GENERATE, Scope.READ))]


class Budget(BaseModel):
    """Of a day. ``limit`` and ``left`` are null where there is no limit."""

    limit: float | None
    used: float
    left: float | None


class Generations(BaseModel):
    """Of a day, as a :class:`Budget`, in whole clips."""

    limit: int | None
    used: int
    left: int | None


class Allowance(BaseModel):
    """What a day gives, from midnight to midnight of the time zone."""

    generations: Generations
    gpu_seconds: Budget
    window: Literal["day"] = "day"
    time_zone: str
    resets_at: int | None = Field(description="Unix time; null where no day has a limit")


class Requests(BaseModel):
    """Submissions: after none for a minute, as many at once as the limit says."""

    limit_per_minute: int | None
    left: int | None


class Jobs(BaseModel):
    count: int
    limit: int | None


class SurgeRules(BaseModel):
    """What holds for a model with a surge, where it differs."""

    generations_per_day: int | None
    service_class: ServiceClass | None = Field(serialization_alias="class")


class Usage(BaseModel):
    """``GET /v1/usage``."""

    object: Literal["usage"] = "usage"
    tier: str
    service_class: ServiceClass = Field(
        serialization_alias="class", description="of jobs inside the allowance"
    )
    beyond: Literal["relaxed", "credits", "refuse"] = Field(
        description="what becomes of jobs beyond the allowance"
    )
    allowance: Allowance
    requests: Requests
    running: Jobs
    queued: Jobs
    surge: dict[str, bool] = Field(
        description="by model: whether more waits for it than its objective allows, so that the "
        "surge rules hold"
    )
    surge_rules: SurgeRules | None


@router.get("")
async def usage(caller: MemberDep, services: ServicesDep) -> Usage:
    """What the caller's tier allows, what of it is used, and when it comes back."""
    grant = Grant.of(caller.tier, services.tiers.current)
    models = services.offered.values()
    now = await services.queue.usage(
        caller.user,
        grant.limits(None, round(time.time() * 1000)),
        [(model.id, grant.surge_ms(model)) for model in models],
    )
    tier, counted = grant.tier, now.allowance
    return Usage(
        tier=grant.name,
        service_class=tier.service_class,
        beyond=tier.beyond,
        allowance=Allowance(
            generations=_generations(tier.generations_per_day, counted.generations_used),
            gpu_seconds=_gpu_seconds(tier.gpu_seconds_per_day, counted.gpu_ms_used),
            time_zone=grant.tiers.time_zone,
            resets_at=counted.resets_ms // 1000 if counted.resets_ms is not None else None,
        ),
        requests=Requests(limit_per_minute=tier.requests_per_minute, left=counted.requests_left),
        running=Jobs(count=now.running, limit=tier.running_jobs),
        queued=Jobs(count=now.queued, limit=tier.queued_jobs),
        surge=dict(now.surge),
        surge_rules=_rules(tier.surge),
    )


def _generations(limit: int | None, used: int) -> Generations:
    return Generations(limit=limit, used=used, left=None if limit is None else left(limit, used))


def _gpu_seconds(limit_s: float | None, used_ms: int) -> Budget:
    used_s = round(used_ms / 1000, 3)
    left_s = None if limit_s is None else round(max(0.0, limit_s - used_s), 3)
    return Budget(limit=limit_s, used=used_s, left=left_s)


def _rules(surge: Surge | None) -> SurgeRules | None:
    if surge is None:
        return None
    return SurgeRules(
        generations_per_day=surge.generations_per_day, service_class=surge.service_class
    )
