"""Users: what the operator has set for them.

A user is whoever a key speaks for, or an end user of theirs: ``shop/ann`` is the ``ann`` of
``shop``, and neither ``ann`` nor the ``ann`` of another service. Users with a key have a record;
an end user has one only once something is set for them, since a service may have millions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from serving.api.accounts import Accounts
from serving.plan.errors import InvalidRequest, NotFound

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
"""Of a user, and of an end user within a service. No "/" or ":": they are ours."""
NAME_RULE = "1 to 64 letters, digits or . _ @ + -, the first a letter or digit"


@dataclass(frozen=True)
class UserInfo:
    """``id`` is the user's name; a ``tier`` of None is the default one."""

    id: str
    tier: str | None
    created_at: int


@dataclass(frozen=True)
class UserPage:
    users: list[UserInfo]
    has_more: bool


class Users:
    """The users of one cell. ``tiers`` says which tiers there are; without it any name is one."""

    def __init__(
        self, redis: Redis, cell: str, tiers: Callable[[], Collection[str]] | None = None
    ) -> None:
        self._accounts = Accounts(redis, cell)
        self._tiers = tiers

    def check_tier(self, tier: str | None) -> None:
        """:class:`InvalidRequest` for one that there is not. None is the default tier."""
        known = None if self._tiers is None else self._tiers()
        if tier is not None and known is not None and tier not in known:
            raise InvalidRequest(
                f"There is no tier '{tier[:64]}'. Known: {', '.join(known)}.",
                code="unknown_tier",
                param="tier",
            )

    async def introduce(self, user: str, tier: str | None = None) -> UserInfo:
        """A user who has no record yet gets one, with ``tier``; another stays as they are."""
        return await self._put(user, tier, only_new=True)

    async def set_tier(self, user: str, tier: str | None) -> UserInfo:
        """From the next request on. None is the default tier, whichever that is at the time."""
        self.check_tier(tier)
        return await self._put(user, tier, only_new=False)

    async def get(self, user: str) -> UserInfo:
        """:class:`NotFound` if nothing was ever set for the user."""
        record = None
        if _is_user(user):
            async with self._accounts.answers():
                record = await self._accounts.redis.hgetall(self._accounts.key("user", user))
        if not record:
            raise NotFound(
                "Nothing is set for this user; the default tier holds. "
                "PUT a tier to give them another.",
                code="user_not_found",
            )
        return _info(user, record)

    async def list(self, *, limit: int, after: str | None = None) -> UserPage:
        """Users in the order they were made, those behind the user ``after``."""
        redis, users = self._accounts.redis, self._accounts.key("users")
        async with self._accounts.answers():
            rank = -1 if after is None else await redis.zrank(users, after)
            if rank is None:
                raise InvalidRequest("There is no user 'after'.", param="after")
            names = await redis.zrange(users, rank + 1, rank + 1 + limit)
            async with redis.pipeline(transaction=False) as pipe:
                for name in names[:limit]:
                    pipe.hgetall(self._accounts.key("user", name))
                records = await pipe.execute()
        pairs = zip(names[:limit], records, strict=True)
        return UserPage([_info(name, record) for name, record in pairs], len(names) > limit)

    async def _put(self, user: str, tier: str | None, *, only_new: bool) -> UserInfo:
        check_user(user)
        record = await self._accounts.run_for_hash("put_user", user, tier or "", int(only_new))
        return _info(user, record)


def check_user(user: str) -> str:
    """The name of a user or an end user; :class:`InvalidRequest` for what is none."""
    if not _is_user(user):
        raise InvalidRequest(
            f"A user's name is {NAME_RULE}; an end user's is SERVICE/NAME, both so.",
            param="user",
        )
    return user


def _is_user(text: str) -> bool:
    parts = text.split("/")
    return len(parts) <= 2 and all(NAME.fullmatch(part) for part in parts)


def _info(user: str, record: Mapping[str, str]) -> UserInfo:
    return UserInfo(user, record.get("tier"), int(record["created_at"]))
