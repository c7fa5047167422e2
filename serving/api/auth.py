"""Bearer keys on requests."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serving.api.services import ServicesDep
from serving.plan.errors import NotAuthenticated, NotPermitted

bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer rsk_…`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]


def _key(credentials: HTTPAuthorizationCredentials | None) -> str:
    if credentials is None:
        raise NotAuthenticated(
            "No API key was sent. Send it as 'Authorization: Bearer KEY'.", code="missing_api_key"
        )
    return credentials.credentials


async def current_user(credentials: Credentials, services: ServicesDep) -> str:
    """The user whose key was sent; 401 otherwise."""
    return await services.keys.user_of(_key(credentials))


async def require_admin(credentials: Credentials, services: ServicesDep) -> None:
    """Pass only with the admin key; 403 with a user's key."""
    key = _key(credentials)
    if await services.keys.is_admin(key):
        return
    await services.keys.user_of(key)
    raise NotPermitted("This needs the admin key (REELSERVE_ADMIN_KEY), not a user's key.")


async def require_any(credentials: Credentials, services: ServicesDep) -> None:
    """Pass with the admin key or any user's key."""
    key = _key(credentials)
    if not await services.keys.is_admin(key):
        await services.keys.user_of(key)


UserDep = Annotated[str, Depends(current_user)]
