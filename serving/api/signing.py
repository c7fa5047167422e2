"""Content URLs that work without a key, for a while.

The signature is HMAC-SHA256 over video, variant and expiry, with a secret that all ingress
replicas share: ``<cell>:url_secret``, made by whoever needs it first.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any
from urllib.parse import urlencode

from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving.plan.errors import NotPermitted, ServiceUnavailable

STABLE_S = 900
"""A URL stays the same for this long, so that polling does not defeat the browser's cache."""


class UrlSigner:
    """``lifetime_s`` is how long a URL works at least."""

    def __init__(self, redis: Redis, cell: str, lifetime_s: int) -> None:
        self._redis: Any = redis
        self._key = f"{cell}:url_secret"
        self._lifetime_s = lifetime_s
        self._secret: bytes | None = None

    async def sign(self, video_id: str, variant: str, now_s: float) -> str:
        """The query string of a signed URL."""
        expires = (int(now_s) // STABLE_S + 1) * STABLE_S + self._lifetime_s
        signature = await self._signature(video_id, variant, expires)
        return urlencode({"variant": variant, "expires": expires, "signature": signature})

    async def check(
        self, video_id: str, variant: str, expires: int | None, signature: str, now_s: float
    ) -> None:
        """:class:`NotPermitted` unless this is a signature of ours that has not expired."""
        expected = await self._signature(video_id, variant, expires or 0)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise NotPermitted("The URL's signature is wrong.", code="invalid_signature")
        if expires is None or now_s > expires:
            raise NotPermitted(
                "The URL has expired; retrieve the video for a new one.", code="url_expired"
            )

    async def _signature(self, video_id: str, variant: str, expires: int) -> str:
        text = f"{video_id}\n{variant}\n{expires}".encode()
        return hmac.new(await self._shared_secret(), text, hashlib.sha256).hexdigest()

    async def _shared_secret(self) -> bytes:
        if self._secret is None:
            try:
                await self._redis.set(self._key, secrets.token_hex(32), nx=True)
                self._secret = (await self._redis.get(self._key)).encode()
            except RedisError as error:
                raise ServiceUnavailable(
                    "The key store does not answer. Try again shortly."
                ) from error
        return self._secret
