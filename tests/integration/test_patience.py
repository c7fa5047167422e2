"""An answer that takes long: there is always something to read, and in the end it is JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response

from serving.api import patience
from serving.api.patience import patiently
from serving.plan.errors import LedgerRefused

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_S", 0.02)
    monkeypatch.setattr(patience, "EVERY_S", 0.01)


async def answer_of(work: Any) -> httpx.Response:
    app = FastAPI()

    @app.get("/")
    async def route() -> Response:
        return await patiently(work)

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/")


async def test_what_is_ready_soon_is_an_ordinary_answer() -> None:
    async def work() -> dict[str, Any]:
        return {"a": 1}

    answer = await answer_of(work())
    assert answer.text == '{"a":1}'


async def test_white_space_comes_before_what_takes_long() -> None:
    async def work() -> dict[str, Any]:
        await asyncio.sleep(0.1)
        return {"a": 1}

    answer = await answer_of(work())
    assert answer.text.startswith("  ")
    assert answer.json() == {"a": 1}
    assert answer.headers["content-type"] == "application/json"


async def test_an_error_is_never_taken_for_an_answer() -> None:
    async def work(seconds: float) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        raise RuntimeError("it does not work")

    for seconds in (0, 0.1):
        with pytest.raises(RuntimeError, match="does not work"):
            await answer_of(work(seconds))


async def test_an_error_of_ours_is_told_however_late_it_is() -> None:
    async def work() -> dict[str, Any]:
        await asyncio.sleep(0.1)
        raise LedgerRefused("It is another.", code="archive_differs")

    answer = await answer_of(work())
    assert answer.text.startswith("  ")
    assert answer.json()["error"]["code"] == "archive_differs"
    assert answer.json().keys() == {"error"}


async def test_work_ends_when_nobody_waits_for_it() -> None:
    ended = asyncio.Event()

    async def work() -> dict[str, Any]:
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()
        return {}

    for seconds in (0.001, 0.05):
        ended.clear()
        waiting = asyncio.create_task(answer_of(work()))
        await asyncio.sleep(seconds + 0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(ended.wait(), 10)
