"""``/v1/admin/queue`` and ``…/explain``: who waits, who is next, and why. For the operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends

from serving.api.auth import require_admin
from serving.api.services import ServicesDep
from serving.jobs import ClassTop, Explanation, State
from serving.plan.classes import Offered

router = APIRouter(prefix="/v1/admin", tags=["operation"], dependencies=[Depends(require_admin)])


@router.get("/queue/{model}")
async def top(model: str, services: ServicesDep) -> dict[str, Any]:
    """What waits for a model: each class's backlog and what it is owed, and the first tenants of
    each, in the order in which they are served. All times are seconds of the device."""
    entry = services.resolve(model)
    pool = await services.queue.top(entry.id)
    return {
        "object": "queue",
        "model": entry.id,
        "order": pool.order,
        "classes": [_class(each, entry) for each in pool.classes],
    }


def _class(top: ClassTop, model: Offered) -> dict[str, Any]:
    return {
        "class": top.service_class,
        "jobs": top.jobs,
        "gpu_seconds": _s(top.ms),
        "share": model.classes[top.service_class].share,
        "credit_s": _s(top.credit_ms),
        "window_s": _s(top.window_ms),
        "tenants_ready": top.ready,
        "tenants": [
            {
                "user": tenant.user,
                "counter_s": _s(tenant.counter_ms),
                "waiting": tenant.waiting,
                "running": tenant.running,
            }
            for tenant in top.tenants
        ],
    }


@router.get("/jobs/{job_id}/explain")
async def explain(job_id: str, services: ServicesDep) -> dict[str, Any]:
    """Why a job waits: in words, most telling first, and in figures. Figures other than its state
    are 0 once it does not wait any more. All times are seconds."""
    found = await services.queue.explain(job_id)
    return {
        "object": "queue.explanation",
        "id": found.id,
        "status": found.state,
        "model": found.pool,
        "user": found.user,
        "class": found.service_class,
        "reasons": list(_reasons(found)),
        "waited_s": _s(found.queued_ms),
        "attempts": found.attempts,
        "replicas": found.replicas,
        "order": found.order,
        "credit_s": _s(found.credit_ms),
        "counter_s": _s(found.counter_ms),
        "least_counter_s": _s(found.least_ms),
        "window_s": _s(found.window_ms),
        "rank": {"seat": found.seat, "urgency_s": _s(found.urgency_ms)},
        "running": found.running,
        "at_running_limit": found.parked,
        "own_before": found.own_before,
        "before": [
            {
                "id": job.id,
                "class": job.service_class,
                "user": job.user,
                "counter_s": _s(job.counter_ms),
                "urgency_s": _s(job.urgency_ms),
                "gpu_seconds_left": _s(job.left_ms),
            }
            for job in found.before
        ],
    }


def _reasons(job: Explanation) -> Iterator[str]:
    if job.state is not State.QUEUED:
        yield f"It does not wait: it is {job.state}."
        return
    if job.replicas == 0:
        yield f"There is no replica of '{job.pool}' now."
    if job.parked:
        yield (
            f"'{job.user}' runs {_jobs(job.running)}, as many as their tier allows at once; the "
            "next one begins when one of those ends."
        )
    earlier = job.order[: job.order.index(job.service_class)] if _is_in_order(job) else job.order
    if earlier:
        yield f"Class {', '.join(earlier)} goes before class {job.service_class} as things stand."
    ahead_ms = job.counter_ms - job.least_ms
    if not job.parked and ahead_ms > job.window_ms:
        yield (
            f"'{job.user}' was given {_s(ahead_ms)} s of the device more than whoever of the class "
            f"was given least; it is their turn again within {_s(job.window_ms)} s of that."
        )
    if job.own_before:
        yield f"'{job.user}' has {_jobs(job.own_before)} before it with less work, or older."
    if job.before:
        yield f"{job.before[0].id} goes first."
    elif not job.parked and job.replicas:
        yield "It is next: a replica takes it as soon as it has room."


def _is_in_order(job: Explanation) -> bool:
    """Its class is not, when nobody of it may be leased a job."""
    return job.service_class in job.order


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _s(ms: float) -> float:
    return round(ms / 1000, 3)
