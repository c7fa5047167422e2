"""`reelserve bench speech`: how soon speech is heard, alone and while videos take every place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtest.errors import LoadTestError
from loadtest.summary import judged, ratios, spread_ms

SENTENCE = (
    "The lighthouse keeper climbed the winding stairs every evening at dusk, carrying a brass"
    " lamp, and counted each of the hundred steps aloud so that nobody would ever feel alone."
)
"""Thirty words, and the only sentence: nothing of it is heard before it is made."""
WARM_UP = 2
FIRST_BYTE_P50_MS = 300.0
BESIDE_VIDEOS_RATIO = 2.0
BEGIN_S_MAX = 120.0
VIDEO = {"prompt": "a red ball moving right", "seconds": 4, "steps": 2000}
"""It does not end by itself meanwhile."""
SETTLE_S = 2.0
"""A replica that has begun one video has by then taken on as many as it does."""


@dataclass
class Heard:
    """Milliseconds of each request, from sending it to its first byte of sound and to its last; and
    of ``GET /healthz`` on the same connection just before."""

    first_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    healthz_ms: list[float] = field(default_factory=list)


async def measure(
    url: str,
    key: str,
    *,
    requests: int,
    audio_format: str,
    videos: int,
    tell: Callable[[str], None],
) -> tuple[Heard, Heard | None]:
    """``requests`` one after another; then as many while ``videos`` run, if there are any.

    :class:`LoadTestError` when a request is refused or the videos do not begin.
    """
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        try:
            idle = await _listen(http, requests, audio_format)
            if not videos:
                return idle, None
            tell(f"{videos} videos take every place")
            running = [await _ask(http, "POST", "/v1/videos", json=VIDEO) for _ in range(videos)]
            ids = [video["id"] for video in running]
            await _places_taken(http, ids)
            beside = await _listen(http, requests, audio_format)
            # One that ended by itself may have left its place open.
            for video_id in ids:
                await _ask(http, "POST", f"/v1/videos/{video_id}/cancel")
        except httpx.HTTPError as error:
            raise LoadTestError(f"{type(error).__name__}: {error}") from error
    return idle, beside


def summarise(idle: Heard, beside: Heard | None) -> dict[str, Any]:
    """The benchmark's result, but for where it was measured."""
    rows = {"first_byte": spread_ms(idle.first_ms), "whole": spread_ms(idle.whole_ms)}
    found = {"first_byte_p50_ms": rows["first_byte"]["p50_ms"]}
    at_most = {"first_byte_p50_ms": FIRST_BYTE_P50_MS}
    if beside is not None:
        rows["beside_videos"] = spread_ms(beside.first_ms)
        ratio = rows["beside_videos"]["p50_ms"] / rows["first_byte"]["p50_ms"]
        found["beside_videos_ratio"] = round(ratio, 2)
        at_most["beside_videos_ratio"] = BESIDE_VIDEOS_RATIO
    baseline = spread_ms(idle.healthz_ms)
    return {
        **rows["first_byte"],
        "requests": len(idle.first_ms),
        "rows": rows,
        "baseline": {"request": "GET /healthz", **baseline},
        "ratio": ratios(rows["first_byte"], baseline),
        "targets": judged(found, at_most=at_most),
    }


async def _listen(http: httpx.AsyncClient, requests: int, audio_format: str) -> Heard:
    heard = Heard()
    body = {"input": SENTENCE, "response_format": audio_format}
    for number in range(WARM_UP + requests):
        began = time.perf_counter()
        await _ask(http, "GET", "/healthz")
        healthz_ms = 1000 * (time.perf_counter() - began)
        began, first = time.perf_counter(), 0.0
        async with http.stream("POST", "/v1/audio/speech", json=body) as answer:
            if answer.status_code != 200:
                raise LoadTestError(f"{answer.status_code} {(await answer.aread()).decode()}")
            async for _ in answer.aiter_raw():
                first = first or time.perf_counter()
        if not first:
            raise LoadTestError("an answer without any sound")
        if number >= WARM_UP:
            heard.healthz_ms.append(healthz_ms)
            heard.first_ms.append(1000 * (first - began))
            heard.whole_ms.append(1000 * (time.perf_counter() - began))
    return heard


async def _places_taken(http: httpx.AsyncClient, ids: Sequence[str]) -> None:
    """Until the replicas run as many of these as they take at once, the others waiting: how many
    that is follows from their shape."""
    deadline = time.monotonic() + BEGIN_S_MAX
    settled = False
    while not settled:
        if time.monotonic() > deadline:
            raise LoadTestError(f"no video began within {BEGIN_S_MAX:g} s")
        videos = [await _ask(http, "GET", f"/v1/videos/{video_id}") for video_id in ids]
        for video in videos:
            if video["status"] not in ("queued", "in_progress"):
                raise LoadTestError(f"{video['id']} {video['status']}: {video['error']}")
        settled = any(video["status"] == "in_progress" for video in videos)
        await asyncio.sleep(SETTLE_S if settled else 0.2)


async def _ask(http: httpx.AsyncClient, method: str, path: str, **how: Any) -> dict[str, Any]:
    answer = await http.request(method, path, **how)
    if answer.status_code != 200:
        raise LoadTestError(f"{method} {path}: {answer.status_code} {answer.text}")
    found: dict[str, Any] = answer.json()
    return found
