"""API keys: who is calling, and what they may do.

A key is ``rsk_<id>_<secret>``. Redis has the secret's SHA-256; the secret itself is shown once
and kept nowhere. A key that is rotated keeps its id, user and scopes and gets a new secret, beside
which the one before works until a grace ends. Besides there is one admin key, which is not of any
user: the operator's own, or one that `reelserve up` made.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import SecretStr
from redis.asyncio import Redis

from serving.api.accounts import Accounts
from serving.api.users import NAME, NAME_RULE
from serving.plan.errors import InvalidRequest, NotAuthenticated, NotFound

KEY = re.compile(r"rsk_([0-9a-f]{12})_([0-9a-f]{40})")
GRACE_S_DEFAULT = 24 * 3600
GRACE_S_MAX = 30 * 24 * 3600


class Scope(StrEnum):
    """What a key may do."""

    GENERATE = "generate"
    """Submit, cancel and delete."""
    READ = "read"
    """See the user's own jobs, clips and usage."""
    ADMIN = "admin"
    """Everything under ``/v1/admin``, and nothing else."""
    ACT_AS = "act-as"
    """Name an end user in ``X-End-User`` and do as them what the other scopes allow."""


DEFAULT_SCOPES = frozenset({Scope.GENERATE, Scope.READ})


@dataclass(frozen=True)
class Caller:
    """Who sent a request. ``user`` owns what comes of it; a ``tier`` of None is the default one."""

    user: str
    tier: str | None
    scopes: frozenset[Scope]
    key_id: str


ADMIN_KEY_CALLER = Caller("(admin key)", None, frozenset({Scope.ADMIN}), "admin")
"""No user can have this name."""


@dataclass(frozen=True)
class KeyInfo:
    """A key without its secret. ``previous_works_until`` is when the grace of its last rotation
    ends or ended, as Unix time in seconds; None if it was never rotated."""

    id: str
    user: str
    scopes: list[Scope]
    created_at: int
    previous_works_until: int | None


def digest(secret: str) -> str:
    """Secrets are 160 random bits, so a plain hash is enough: there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The keys of one cell. ``admin_key`` overrides the one stored in Redis."""

    def __init__(self, redis: Redis, cell: str, admin_key: SecretStr | None = None) -> None:
        self._accounts = Accounts(redis, cell)
        self._admin_key = admin_key

    async def create(
        self, user: str, scopes: Collection[Scope] = DEFAULT_SCOPES, tier: str | None = None
    ) -> tuple[KeyInfo, str]:
        """A new key for ``user``, and its text, which cannot be had again. With a ``tier``, the
        user has that one from now on, whatever it was."""
        if not NAME.fullmatch(user):
            raise InvalidRequest(f"'user' must be {NAME_RULE}.", param="user")
        _check_scopes(scopes)
        key_id, secret = secrets.token_hex(6), secrets.token_hex(20)
        words = " ".join(scope for scope in Scope if scope in scopes)
        record = await self._accounts.run_for_hash(
            "create_key", key_id, digest(secret), user, words, tier or ""
        )
        return _info(key_id, record), _text(key_id, secret)

    async def list(self) -> list[KeyInfo]:
        async with self._accounts.answers():
            redis = self._accounts.redis
            ids = sorted(await redis.smembers(self._accounts.key("apikeys")))
            async with redis.pipeline(transaction=False) as pipe:
                for key_id in ids:
                    pipe.hgetall(self._accounts.key("apikey", key_id))
                records = await pipe.execute()
        return [
            _info(key_id, record) for key_id, record in zip(ids, records, strict=True) if record
        ]

    async def rotate(self, key_id: str, grace_s: int = GRACE_S_DEFAULT) -> tuple[KeyInfo, str]:
        """A new secret under the same id, and the key's new text. The old secret works for
        ``grace_s`` more; with 0 it has ended.

        Rotated again within the grace, the key's secrets are the new one and the one before it; but
        a new one that nobody has called with yet is replaced, so that after a lost answer the
        one in use works on.
        """
        secret = secrets.token_hex(20)
        record = await self._accounts.run_for_hash(
            "rotate_key", key_id, digest(secret), grace_s * 1000
        )
        if not record:
            raise _no_such_key()
        return _info(key_id, record), _text(key_id, secret)

    async def revoke(self, key_id: str) -> None:
        """Forget a key. It is refused from now on, whichever of its secrets is sent."""
        async with (
            self._accounts.answers(),
            self._accounts.redis.pipeline(transaction=True) as pipe,
        ):
            pipe.delete(self._accounts.key("apikey", key_id))
            pipe.srem(self._accounts.key("apikeys"), key_id)
            gone, _ = await pipe.execute()
        if not gone:
            raise _no_such_key()

    async def caller(self, key: str, end_user: str | None = None) -> Caller:
        """Who calls with this key, or as which end user; :class:`NotAuthenticated` when nobody.

        Whether the key may act for end users is for who asks to check; ``end_user`` is a
        name. One round trip, and none for an admin key that was configured.
        """
        if self._admin_key is not None and _same(self._admin_key.get_secret_value(), key):
            return ADMIN_KEY_CALLER
        if match := KEY.fullmatch(key):
            found = await self._accounts.run("who", match[1], digest(match[2]), end_user or "")
            if found:
                user, words, tier = found
                tenant = user if end_user is None else f"{user}/{end_user}"
                return Caller(tenant, tier, frozenset(_scopes(words)), match[1])
        elif self._admin_key is None:
            async with self._accounts.answers():
                expected = await self._accounts.redis.get(self._accounts.key("admin_key"))
            if hmac.compare_digest(expected or "", digest(key)):
                return ADMIN_KEY_CALLER
        raise NotAuthenticated(
            "Incorrect API key provided. An operator makes one with `reelserve keys create`."
        )

    async def knows(self, key: str) -> bool:
        """Whether :meth:`caller` would find the key."""
        try:
            await self.caller(key)
        except NotAuthenticated:
            return False
        return True

    async def make_admin_key(self) -> str | None:
        """A new admin key's text the first time; None when there is one already."""
        if self._admin_key is not None:
            return None
        key = f"rsk_admin_{secrets.token_hex(20)}"
        async with self._accounts.answers():
            redis = self._accounts.redis
            made = await redis.set(self._accounts.key("admin_key"), digest(key), nx=True)
        return key if made else None


def _check_scopes(scopes: Collection[Scope]) -> None:
    if not scopes:
        raise InvalidRequest(f"'scopes' must name one of {', '.join(Scope)}.", param="scopes")
    if Scope.ACT_AS in scopes and not DEFAULT_SCOPES & set(scopes):
        raise InvalidRequest(
            "'act-as' says for whom, not what: add generate, read or both to 'scopes'.",
            param="scopes",
        )


def _text(key_id: str, secret: str) -> str:
    return f"rsk_{key_id}_{secret}"


def _same(expected: str, key: str) -> bool:
    return hmac.compare_digest(digest(expected), digest(key))


def _scopes(words: str | None) -> list[Scope]:
    """Of a key's record. One from before there were scopes has the default ones."""
    has = DEFAULT_SCOPES if words is None else words.split()
    return [scope for scope in Scope if scope in has]


def _info(key_id: str, record: Mapping[str, str]) -> KeyInfo:
    until_ms = record.get("previous_until_ms")
    return KeyInfo(
        key_id,
        record["user"],
        _scopes(record.get("scopes")),
        int(record["created_at"]),
        None if until_ms is None else int(until_ms) // 1000,
    )


def _no_such_key() -> NotFound:
    return NotFound("There is no key with this id.", code="key_not_found")
