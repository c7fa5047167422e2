"""The scripts that change users and keys. ``lua/_accounts.lua`` lists the Redis keys."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

SCRIPTS = ("create_key", "rotate_key", "who", "put_user")


class Accounts:
    """Users and keys of one cell, over a client that decodes responses.

    Whatever writes more than one thing is one script or one transaction, and may be repeated with
    the same arguments after a lost answer.
    """

    def __init__(self, redis: Redis, cell: str) -> None:
        # Its annotations say bytes or str; a client that decodes responses gives str.
        self.redis: Any = redis
        self._cell = cell
        folder = files("serving.api") / "lua"
        prelude = (folder / "_accounts.lua").read_text()
        self._scripts: dict[str, AsyncScript] = {
            script: redis.register_script(prelude + (folder / f"{script}.lua").read_text())
            for script in SCRIPTS
        }

    def key(self, *parts: str) -> str:
        return ":".join((self._cell, *parts))

    async def run(self, script: str, *args: str | int) -> Any:
        """``lua/<script>.lua``. The client loads it again when Redis forgot it."""
        async with self.answers():
            return await self._scripts[script](keys=[self._cell], args=list(args))

    async def run_for_hash(self, script: str, *args: str | int) -> dict[str, str]:
        """A script that answers with a hash, empty if there is none."""
        flat = await self.run(script, *args)
        return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}

    @asynccontextmanager
    async def answers(self) -> AsyncIterator[None]:
        """Around commands: a Redis that is away becomes :class:`ServiceUnavailable`."""
        try:
            yield
        except RedisError as error:
            log.warning("redis: %s: %s", type(error).__name__, error)
            raise ServiceUnavailable("The key store does not answer. Try again shortly.") from error
