"""`reelserve bench overhead`: what serving adds to a job that runs alone.

Overhead is a job's time from submission to completion without the four stages that any way
of making the clip would take: text encoding, denoising, decoding, encoding and storing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.connection import Address, Answer, Connection
from loadtest.errors import LoadTestError
from loadtest.summary import ratios, spread_ms

TARGET_P50_MS = 150.0
WARM_UP_JOBS = 2
LOOK_EVERY_S = 0.01
"""A tighter poll would take CPU from the model, which shares the machine."""
JOB_S_MAX = 120.0
STAGES = ("encode_s", "denoise_s", "decode_s", "store_s")
JOB = {"prompt": "a red ball moving right", "seconds": 1, "steps": 4}


@dataclass(frozen=True)
class JobTime:
    """One job's milliseconds. ``server_ms`` and ``seen_ms`` are without ``stages_ms``:
    by the job's own record, and by the clock of the client that waited for it."""

    healthz_ms: float
    submit_ms: float
    queued_ms: float
    stages_ms: float
    server_ms: float
    seen_ms: float


def bench_overhead(
    url: str, key: str, *, jobs: int, progress: Callable[[int], None]
) -> list[JobTime]:
    """Run ``jobs`` one after another. :class:`LoadTestError` when one of them does not complete."""
    return asyncio.run(_bench(Client(Address.of(url), key), jobs, progress))


def summarise(times: list[JobTime]) -> dict[str, Any]:
    """The benchmark's result, but for where it was measured. The client's view counts."""
    rows = {
        "overhead": spread_ms([job.seen_ms for job in times]),
        "overhead_by_record": spread_ms([job.server_ms for job in times]),
        "submit": spread_ms([job.submit_ms for job in times]),
        "queued": spread_ms([job.queued_ms for job in times]),
        "stages": spread_ms([job.stages_ms for job in times]),
    }
    baseline = spread_ms([job.healthz_ms for job in times])
    return {
        **rows["overhead"],
        "jobs": len(times),
        "rows": rows,
        "baseline": {"request": "GET /healthz", **baseline},
        "ratio": ratios(rows["overhead"], baseline),
        "target": {"p50_ms": TARGET_P50_MS, "met": rows["overhead"]["p50_ms"] <= TARGET_P50_MS},
    }


class Client:
    """One keep-alive connection, and how long each answer took."""

    def __init__(self, address: Address, key: str) -> None:
        self._address = address
        self._key = key
        self._connection: Connection | None = None

    async def ask(self, method: str, path: str, fields: Any = None) -> tuple[Any, float]:
        """The answer's JSON and the milliseconds it took; :class:`LoadTestError` if it failed."""
        clock = asyncio.get_running_loop().time
        request = self._address.request(method, path, self._key, fields)
        began = clock()
        try:
            answer = await self._send(request)
        except (OSError, EOFError, ValueError) as error:
            raise LoadTestError(f"{method} {path}: {error}") from error
        took_ms = 1000 * (clock() - began)
        if answer.status != 200:
            raise LoadTestError(f"{method} {path}: {answer.status} {answer.body.decode()}")
        return json.loads(answer.body), took_ms

    async def _send(self, request: bytes) -> Answer:
        if self._connection is None or not self._connection.usable:
            self._connection = await Connection.to(self._address)
        return await self._connection.send(request)


async def _bench(client: Client, jobs: int, progress: Callable[[int], None]) -> list[JobTime]:
    times = []
    for number in range(WARM_UP_JOBS + jobs):
        timed = await _one(client, seed=number)
        if number >= WARM_UP_JOBS:
            times.append(timed)
            progress(len(times))
    return times


async def _one(client: Client, seed: int) -> JobTime:
    clock = asyncio.get_running_loop().time
    _, healthz_ms = await client.ask("GET", "/healthz")
    began = clock()
    video, submit_ms = await client.ask("POST", "/v1/videos", {**JOB, "seed": seed})
    while video["status"] in ("queued", "in_progress"):
        if clock() - began > JOB_S_MAX:
            raise LoadTestError(f"{video['id']} did not end within {JOB_S_MAX:g} s")
        await asyncio.sleep(LOOK_EVERY_S)
        video, _ = await client.ask("GET", f"/v1/videos/{video['id']}")
    seen_ms = 1000 * (clock() - began)
    if video["status"] != "completed":
        raise LoadTestError(f"{video['id']} {video['status']}: {video['error']}")
    timings = video["timings"]
    stages_ms = 1000 * sum(timings[name] for name in STAGES)
    return JobTime(
        healthz_ms=healthz_ms,
        submit_ms=submit_ms,
        queued_ms=1000 * timings["queued_s"],
        stages_ms=stages_ms,
        server_ms=1000 * timings["total_s"] - stages_ms,
        seen_ms=seen_ms - stages_ms,
    )
