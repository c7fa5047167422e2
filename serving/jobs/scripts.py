"""The Lua scripts of this room, assembled once and called by name."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

NAMES = ("submit", "lease", "heartbeat", "finish", "yield", "cancel", "delete")


class Scripts:
    """``await scripts("lease", …)`` runs ``lua/lease.lua`` on one cell by EVALSHA.

    The client library loads a script again when Redis forgot it (a restart empties the cache).
    """

    def __init__(self, redis: Redis, cell: str) -> None:
        folder = files("serving.jobs") / "lua"
        prelude = (folder / "_keys.lua").read_text()
        self._cell = cell
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(prelude + (folder / f"{name}.lua").read_text())
            for name in NAMES
        }

    async def __call__(self, name: str, *args: str | int) -> Any:
        return await self._scripts[name](keys=[self._cell], args=list(args))
