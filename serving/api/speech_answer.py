"""The answer that is heard while it is made: ends when all was sent, or when its listener left.

Not the framework's own streaming answer, which does not say how it ended: whether somebody left,
and after what, decides what they pay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from fastapi import Response
from starlette.types import Receive, Scope, Send

from serving.api.speech_work import SpeechWork, ended, error_event
from serving.plan.errors import ReelserveError

log = logging.getLogger(__name__)

_settling: set[asyncio.Task[BaseException | None]] = set()
"""Ends that are being recorded. Whoever cancels the request does not cancel these."""


class SpeechAnswer(Response):
    """Sends what ``work`` makes, and settles it. ``seconds_max`` bounds how long a listener may
    take."""

    def __init__(self, work: SpeechWork, headers: Mapping[str, str], *, seconds_max: float) -> None:
        super().__init__(media_type=work.media_type)
        self._work, self._seconds_max = work, seconds_max
        del self.headers["content-length"]
        self.headers.update(headers)
        # Proxies that collect answers would keep it until it is whole.
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send), name="speech")
        gone = asyncio.create_task(_until_gone(receive), name="speech-listener")
        keeping = asyncio.create_task(self._work.keep(), name="speech-lease")
        try:
            await asyncio.wait(
                {sending, gone, keeping},
                timeout=self._seconds_max,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ending = asyncio.create_task(self._end(sending, gone, keeping), name="speech-end")
            _settling.add(ending)
            ending.add_done_callback(_settling.discard)
            error = await asyncio.shield(ending)
        if error is not None:
            # The connection is cut, so that nobody takes a part for the whole.
            raise error

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        try:
            async for piece in self._work.pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ReelserveError as error:
            if self._work.events:
                body = error_event(error)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end(
        self, sending: asyncio.Task[None], *others: asyncio.Task[None]
    ) -> BaseException | None:
        """Settle it, by how the sending ended; the error that ended it, unless its listener did."""
        await ended(sending, *others)
        work = self._work
        errors = [error for task in (sending, *others) if (error := _error_of(task)) is not None]
        error = next((each for each in errors if not isinstance(each, OSError)), None)
        if not sending.cancelled() and sending.exception() is None:
            error = None
            await work.completed()
        elif error is not None:
            log.warning("%s failed: %s", work.lease.id, error)
            await work.failed(error)
        else:
            await work.left()
        await work.close()
        return error


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
