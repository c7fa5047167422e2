"""A clip's frames on their way through an upscaler, which may be full, late or away for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from deployments.patience import end
from serving.engine import EngineClosed
from serving.models.family import Frames
from serving.models.triton_upscaler import TritonUpscaler
from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

RENEW_S = 1.0
"""How often the lease is renewed while the server has a request, which it has for no longer than
its ``timeout_s``; and so how soon one that was cancelled is cancelled there."""
PAUSES_S = (0.1, 0.2, 0.5, 1.0)

T = TypeVar("T")


class Upscaling:
    """Of one run.

    ``renew`` keeps the run's lease, and raises :class:`StaleLease` when the job is no longer its
    own. ``leaving`` says that the replica should be gone: then it stops at the next few frames, and
    whoever takes the job next goes on from its final latents.
    """

    def __init__(
        self,
        upscaler: TritonUpscaler,
        renew: Callable[[], Awaitable[None]],
        leaving: Callable[[], bool],
    ) -> None:
        self._upscaler, self._renew, self._leaving = upscaler, renew, leaving
        self.spent_s = 0.0
        """In requests that were answered, the server's queue included."""

    async def of(self, frames: Frames) -> AsyncIterator[Frames]:
        """``frames``, uint8 [n, height, width, 3], at twice the size, a few at a time.

        Raises :class:`ServiceUnavailable` when the server was away for longer than the catalog's
        ``patience_s``, :class:`EngineClosed` when the replica leaves, and :class:`GenerationError`
        when the server cannot do it.
        """
        most = self._upscaler.seat.frames
        for first in range(0, len(frames), most):
            if self._leaving():
                raise EngineClosed("the replica leaves")
            yield await self._patiently(frames[first : first + most])

    async def _patiently(self, frames: Frames) -> Frames:
        patience_ends = time.monotonic() + self._upscaler.seat.patience_s
        tries = 0
        while True:
            began = time.perf_counter()
            try:
                upscaled = await self._renewing(self._upscaler.upscaled(frames))
            except ServiceUnavailable as error:
                if self._leaving() or time.monotonic() > patience_ends:
                    raise
                log.warning("upscaling goes on later: %s", error)
                await self._renewing(asyncio.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)]))
                tries += 1
            else:
                self.spent_s += time.perf_counter() - began
                return upscaled

    async def _renewing(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` gives; it is cancelled if the lease is lost meanwhile."""
        task = asyncio.create_task(work, name="upscaling")
        try:
            while not (await asyncio.wait({task}, timeout=RENEW_S))[0]:
                await self._renew()
            return await task
        finally:
            if not task.done():
                await end(task)
