"""Bearer keys on requests, and the end users that services name."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serving.api.keys import KEY
from serving.api.keys import Caller as Caller
from serving.api.keys import Scope as Scope
from serving.api.services import ServicesDep
from serving.api.users import NAME, NAME_RULE
from serving.plan.errors import InvalidRequest, NotAuthenticated, NotPermitted

log = logging.getLogger(__name__)

END_USER = "X-End-User"

bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer rsk_…`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
EndUsers = Annotated[
    list[str] | None,
    Header(alias=END_USER, description="one name: for whom a key with the scope act-as acts"),
]


async def current_caller(
    credentials: Credentials, services: ServicesDep, end_users: EndUsers = None
) -> Caller:
    """Who sent the request: the key's user, or the end user it names; 401 without a good key."""
    if credentials is None:
        raise NotAuthenticated(
            "No API key was sent. Send it as 'Authorization: Bearer KEY'.", code="missing_api_key"
        )
    # What is no name must not get into the name of a Redis key. But its sender may have a wrong
    # key, or one that may not name anybody, and is told so first.
    names = end_users or []
    name = names[0] if len(names) == 1 and NAME.fullmatch(names[0]) else None
    caller = await services.keys.caller(credentials.credentials, name)
    if not names:
        return caller
    if Scope.ACT_AS not in caller.scopes:
        raise NotPermitted(
            f"{END_USER} needs a key with the scope act-as. An operator makes one with "
            "`reelserve keys create --scope act-as`."
        )
    if name is None:
        raise InvalidRequest(f"{END_USER} must be one name: {NAME_RULE}.", param=END_USER)
    return caller


CallerDep = Annotated[Caller, Depends(current_caller)]


def permit(caller: Caller, *scopes: Scope) -> Caller:
    """The caller, if their key has one of these scopes; 403 otherwise."""
    if not caller.scopes.intersection(scopes):
        has = ", ".join(sorted(caller.scopes))
        raise NotPermitted(
            f"This needs a key with the scope {' or '.join(scopes)}; this one has {has}."
        )
    return caller


def require(*scopes: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """:func:`permit` as a dependency."""

    async def permitted(caller: CallerDep) -> Caller:
        return permit(caller, *scopes)

    return permitted


GenerateDep = Annotated[Caller, Depends(require(Scope.GENERATE))]
ReadDep = Annotated[Caller, Depends(require(Scope.READ))]
AdminDep = Annotated[Caller, Depends(require(Scope.ADMIN))]


async def require_admin(request: Request, caller: AdminDep) -> None:
    """Pass only with the admin key or a key with the scope admin. Who changes what is logged."""
    if request.method != "GET":
        # Somebody may have put a key where its id belongs.
        where = KEY.sub(r"rsk_\1_…", request.url.path)[:200]
        log.info("admin: %s %r by %s, key %s", request.method, where, caller.user, caller.key_id)
