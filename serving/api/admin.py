"""``/v1/admin``: what only the operator may do. ``/v1/status``: how the cell is doing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from serving.api.auth import current_caller, require_admin
from serving.api.body import body_docs, read_fields, validate
from serving.api.schemas import KeyCreate, KeyRotate, UserUpdate
from serving.api.services import ServicesDep
from serving.plan.costs import PoolCosts
from serving.plan.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["operation"])
admin = [Depends(require_admin)]


@router.post("/admin/keys", dependencies=admin, openapi_extra=body_docs(KeyCreate))
async def create_key(request: Request, services: ServicesDep) -> dict[str, Any]:
    """A new API key for a user, who is made if there is none of the name. ``key`` is shown only in
    this answer."""
    wanted = validate(KeyCreate, await read_fields(request))
    services.users.check_tier(wanted.tier)
    info, key = await services.keys.create(wanted.user, wanted.scopes, wanted.tier)
    return {"object": "api_key", **vars(info), "key": key}


@router.get("/admin/keys", dependencies=admin)
async def list_keys(services: ServicesDep) -> dict[str, Any]:
    """Every key, without its secret."""
    keys = await services.keys.list()
    return {"object": "list", "data": [{"object": "api_key", **vars(info)} for info in keys]}


@router.post("/admin/keys/{key_id}/rotate", dependencies=admin, openapi_extra=body_docs(KeyRotate))
async def rotate_key(key_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """A new secret under the same id; the one before works until ``previous_works_until``. Safe to
    repeat: a new secret that nobody has called with is replaced, and the one in use kept."""
    fields = await read_fields(request) if await request.body() else {}
    wanted = validate(KeyRotate, fields)
    info, key = await services.keys.rotate(key_id, wanted.grace_s)
    return {"object": "api_key", **vars(info), "key": key}


@router.delete("/admin/keys/{key_id}", dependencies=admin)
async def revoke_key(key_id: str, services: ServicesDep) -> dict[str, Any]:
    """Refuse a key from now on. Its id goes in the URL, never its text: URLs are logged."""
    await services.keys.revoke(key_id)
    return {"object": "api_key.deleted", "id": key_id, "deleted": True}


@router.get("/admin/users", dependencies=admin)
async def list_users(
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1)] = 20,
) -> dict[str, Any]:
    """Users in the order they were made; ``last_id`` is the next page's ``after``."""
    if limit > services.settings.list_limit_max:
        raise InvalidRequest(
            f"'limit' must be from 1 to {services.settings.list_limit_max}.", param="limit"
        )
    page = await services.users.list(limit=limit, after=after)
    return {
        "object": "list",
        "data": [{"object": "user", **vars(info)} for info in page.users],
        "first_id": page.users[0].id if page.users else None,
        "last_id": page.users[-1].id if page.users else None,
        "has_more": page.has_more,
    }


@router.get("/admin/users/{user:path}", dependencies=admin)
async def retrieve_user(user: str, services: ServicesDep) -> dict[str, Any]:
    """A user, or an end user as SERVICE/NAME; 404 if nothing was ever set for them."""
    return {"object": "user", **vars(await services.users.get(user))}


@router.put("/admin/users/{user:path}", dependencies=admin, openapi_extra=body_docs(UserUpdate))
async def update_user(user: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Set a user's tier, from their next request on; they are made if there is none of the name."""
    wanted = validate(UserUpdate, await read_fields(request))
    info = await services.users.set_tier(user, wanted.tier)
    return {"object": "user", **vars(info)}


@router.get("/status", dependencies=[Depends(current_caller)])
async def status(services: ServicesDep) -> dict[str, Any]:
    """Each pool's backlog and replicas, how its jobs ended, what else happened to them, and how
    good the predictions of what they take have been lately, by device and stage."""
    pools = await services.queue.pools(list(services.offered))
    learns = services.catalog.models
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
                "failed_starts": {"count": pool.starts.failures, "error": pool.starts.error},
                "costs": _costs(await services.costs.of(learns[name])) if name in learns else {},
            }
            for name, pool in pools.items()
        },
    }


def _costs(pool: PoolCosts) -> dict[str, Any]:
    return {
        device: {stage: asdict(accuracy) for stage, accuracy in costs.accuracy().items()}
        for device, costs in sorted(pool.learned.items())
    }
