"""Answers that take long, through whatever gives up on a silent connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse

from serving.api.errors import answer
from serving.plan.errors import ReelserveError

FIRST_S = 5.0
"""So long an error still has its status; after that it is 200 with the body of one, and what nobody
expected is an answer that is cut."""
EVERY_S = 2.0


async def patiently(work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """The JSON object that ``work`` makes, however long that takes: meanwhile the answer is white
    space, which may stand before it. Work that nobody waits for any more ends."""
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=FIRST_S)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if done:
        return JSONResponse(task.result())

    async def text() -> AsyncIterator[str]:
        try:
            while not (await asyncio.wait({task}, timeout=EVERY_S))[0]:
                yield " "
            try:
                yield json.dumps(task.result())
            except ReelserveError as error:
                yield bytes(answer(error).body).decode()
        finally:
            task.cancel()

    return StreamingResponse(text(), media_type="application/json")
