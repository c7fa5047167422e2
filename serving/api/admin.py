"""``/v1/admin``: what only the operator may do. ``/v1/status``: how the cell is doing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request

from serving.api.auth import require_admin, require_any
from serving.api.body import body_docs, read_fields, validate
from serving.api.schemas import KeyCreate
from serving.api.services import ServicesDep
from serving.plan.costs import PoolCosts

router = APIRouter(prefix="/v1", tags=["operation"])
admin = [Depends(require_admin)]


@router.post("/admin/keys", dependencies=admin, openapi_extra=body_docs(KeyCreate))
async def create_key(request: Request, services: ServicesDep) -> dict[str, Any]:
    """A new API key for a user. ``key`` is shown only in this answer."""
    wanted = validate(KeyCreate, await read_fields(request))
    info, key = await services.keys.create(wanted.user)
    return {"object": "api_key", **vars(info), "key": key}


@router.get("/admin/keys", dependencies=admin)
async def list_keys(services: ServicesDep) -> dict[str, Any]:
    """Every key, without its secret."""
    keys = await services.keys.list()
    return {"object": "list", "data": [{"object": "api_key", **vars(info)} for info in keys]}


@router.delete("/admin/keys/{key_id}", dependencies=admin)
async def revoke_key(key_id: str, services: ServicesDep) -> dict[str, Any]:
    """Refuse a key from now on. Its id goes in the URL, never its text: URLs are logged."""
    await services.keys.revoke(key_id)
    return {"object": "api_key.deleted", "id": key_id, "deleted": True}


@router.get("/status", dependencies=[Depends(require_any)])
async def status(services: ServicesDep) -> dict[str, Any]:
    """Each pool's backlog and replicas, how its jobs ended, what else happened to them, and how
    good the predictions of what they take have been lately, by device and stage."""
    pools = await services.queue.pools(list(services.catalog.models))
    return {
        "object": "status",
        "pools": {
            name: {
                "queued": pool.queued,
                "in_progress": pool.in_progress,
                "oldest_wait_s": round(pool.oldest_ms / 1000, 1),
                "ended": {str(state): count for state, count in sorted(pool.ended.items())},
                "counts": dict(sorted(pool.counts.items())),
                "replicas": [vars(replica) for replica in pool.replicas],
                "costs": _costs(await services.costs.of(services.catalog.models[name])),
            }
            for name, pool in pools.items()
        },
    }


def _costs(pool: PoolCosts) -> dict[str, Any]:
    return {
        device: {stage: asdict(accuracy) for stage, accuracy in costs.accuracy().items()}
        for device, costs in sorted(pool.learned.items())
    }
