"""API keys: who is calling.

A key is ``rsk_<id>_<secret>``. Redis holds ``<cell>:apikey:<id>``, a hash of the user, the
secret's SHA-256 and the time it was made; the secret itself is shown once and kept nowhere.
``<cell>:apikeys`` is the set of ids. ``<cell>:admin_key`` is the SHA-256 of the admin key
that `reelserve up` made, when the operator gave none.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving.plan.errors import InvalidRequest, NotAuthenticated, NotFound, ServiceUnavailable

KEY = re.compile(r"^rsk_([0-9a-f]{12})_([0-9a-f]{40})$")
USER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$")


@dataclass(frozen=True)
class KeyInfo:
    """A key without its secret."""

    id: str
    user: str
    created_at: int


def digest(secret: str) -> str:
    """Secrets are 160 random bits, so a plain hash is enough: there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The keys of one cell. ``admin_key`` overrides the one stored in Redis."""

    def __init__(self, redis: Redis, cell: str, admin_key: SecretStr | None = None) -> None:
        # Its annotations say bytes or str; a client that decodes responses gives str.
        self._redis: Any = redis
        self._cell = cell
        self._admin_key = admin_key

    async def create(self, user: str) -> tuple[KeyInfo, str]:
        """A new key for ``user``, and its text, which cannot be had again."""
        if not USER.fullmatch(user):
            raise InvalidRequest(
                "'user' must be 1 to 64 letters, digits or . _ @ + - and start with "
                "a letter or digit.",
                param="user",
            )
        key_id, secret = secrets.token_hex(6), secrets.token_hex(20)
        try:
            seconds, _ = await self._redis.time()
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(
                    f"{self._cell}:apikey:{key_id}",
                    mapping={"user": user, "sha256": digest(secret), "created_at": seconds},
                )
                pipe.sadd(f"{self._cell}:apikeys", key_id)
                await pipe.execute()
        except RedisError as error:
            raise _away() from error
        return KeyInfo(key_id, user, seconds), f"rsk_{key_id}_{secret}"

    async def list(self) -> list[KeyInfo]:
        try:
            ids = sorted(await self._redis.smembers(f"{self._cell}:apikeys"))
            async with self._redis.pipeline(transaction=False) as pipe:
                for key_id in ids:
                    pipe.hgetall(f"{self._cell}:apikey:{key_id}")
                records = await pipe.execute()
        except RedisError as error:
            raise _away() from error
        return [
            KeyInfo(key_id, record["user"], int(record["created_at"]))
            for key_id, record in zip(ids, records, strict=True)
            if record
        ]

    async def revoke(self, key_id: str) -> None:
        """Forget a key. It is refused from now on."""
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(f"{self._cell}:apikey:{key_id}")
                pipe.srem(f"{self._cell}:apikeys", key_id)
                gone, _ = await pipe.execute()
        except RedisError as error:
            raise _away() from error
        if not gone:
            raise NotFound("There is no key with this id.", code="key_not_found")

    async def user_of(self, key: str) -> str:
        """Whose key this is; :class:`NotAuthenticated` when nobody's."""
        match = KEY.match(key)
        if match:
            try:
                record = await self._redis.hgetall(f"{self._cell}:apikey:{match[1]}")
            except RedisError as error:
                raise _away() from error
            if record and hmac.compare_digest(record["sha256"], digest(match[2])):
                return str(record["user"])
        raise NotAuthenticated(
            "Incorrect API key provided. An operator makes one with `reelserve keys create`."
        )

    async def knows(self, key: str) -> bool:
        """Whether :meth:`user_of` would find the key."""
        try:
            await self.user_of(key)
        except NotAuthenticated:
            return False
        return True

    async def is_admin(self, key: str) -> bool:
        if self._admin_key is not None:
            expected = digest(self._admin_key.get_secret_value())
        else:
            try:
                expected = await self._redis.get(f"{self._cell}:admin_key") or ""
            except RedisError as error:
                raise _away() from error
        return hmac.compare_digest(expected, digest(key))

    async def make_admin_key(self) -> str | None:
        """A new admin key's text the first time; None when there is one already."""
        if self._admin_key is not None:
            return None
        key = f"rsk_admin_{secrets.token_hex(20)}"
        try:
            made = await self._redis.set(f"{self._cell}:admin_key", digest(key), nx=True)
        except RedisError as error:
            raise _away() from error
        return key if made else None


def _away() -> ServiceUnavailable:
    return ServiceUnavailable("The key store does not answer. Try again shortly.")
