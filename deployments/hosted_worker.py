"""A worker inside of Ray Serve, whatever makes its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deployments.connections import Backends
from deployments.leaving import here, told_to_leave
from deployments.patience import end
from deployments.pool_worker import PoolWorker


async def nothing() -> None:
    """There is nothing else to close."""


class HostedWorker:
    """Serve places it, watches it and takes it away again.

    It answers no requests: work comes from the queue, so nothing is lost with a router. Whoever
    derives from it calls :meth:`_host` at the end of its constructor, which Serve calls on the
    replica's own event loop.
    """

    def _host(
        self,
        worker: PoolWorker[Any],
        backends: Backends,
        *,
        replica: str,
        leave_dir: Path | None,
        drain_s: Callable[[], float],
        beside: Coroutine[Any, Any, None] | None = None,
        close: Callable[[], Awaitable[None]] = nothing,
    ) -> None:
        """``leave_dir``: by which a node that is to go tells ``replica``. ``drain_s``: how long it
        may take to leave. ``beside``: what else runs until it does, and ``close``: what else it
        holds."""
        loop = asyncio.get_running_loop()
        self._worker, self._backends = worker, backends
        self._drain_s, self._close = drain_s, close
        self._task = loop.create_task(worker.run(), name="worker")
        self._tasks = [self._task]
        if beside is not None:
            self._tasks.append(loop.create_task(beside, name="beside"))
        self._draining: asyncio.Task[None] | None = None
        self._here = ExitStack()
        if leave_dir is not None:
            self._here.enter_context(here(leave_dir, replica))
            self._tasks.append(loop.create_task(self._leave(leave_dir), name="leaving"))

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises. One that leaves with its node is well: what
        took its place here would leave too."""
        if self._draining is not None:
            return
        if self._task.done():
            raise RuntimeError(f"the worker ended: {self._task}")
        self._worker.check()

    async def __del__(self) -> None:
        """Serve's drain hook: hand the jobs back before the process goes."""
        if not hasattr(self, "_worker"):
            return
        await self._drained()
        await end(*self._tasks)
        self._here.close()
        await self._close()
        await self._backends.close()

    async def _leave(self, folder: Path) -> None:
        await told_to_leave(folder)
        try:
            await self._drained()
        finally:
            self._here.close()

    async def _drained(self) -> None:
        """Whoever asks first begins it, and all wait for the same end."""
        if self._draining is None:
            drain = self._worker.drain(self._drain_s())
            self._draining = asyncio.create_task(drain, name="drain")
        await asyncio.shield(self._draining)
