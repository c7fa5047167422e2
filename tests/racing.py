"""One of several processes that submit at the same moment: ``python -m tests.racing``.

For each line of JSON it is given, the arguments of :func:`race`, it says that it is ready, waits
for another line, and prints what became of what it then sent at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from redis.asyncio import Redis

from serving.jobs import Cell, JobQueue, JobSettings, Limits, Wish
from serving.plan.errors import RequestError
from tests.jobs import spec


async def outcome(queue: JobQueue, what: dict[str, Any]) -> str:
    """The class of a job that was accepted, ``replayed``, or why it was refused; and its id."""
    limits, wish = Limits(**what.pop("limits", {})), Wish(**what.pop("wish", {}))
    try:
        admission = await queue.submit(
            **what, alias="sora-2", spec=spec(), limits=limits, wish=wish
        )
    except RequestError as refused:
        return f"{refused.code} -"
    assert admission.job is not None
    said = "replayed" if admission.replayed else admission.job.service_class
    return f"{said} {admission.job.id}"


async def race(url: str, settings: dict[str, Any], submits: list[dict[str, Any]]) -> None:
    redis: Redis = Redis.from_url(url, decode_responses=True)
    queue = JobQueue(Cell(redis), JobSettings(**settings))
    await redis.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    said = await asyncio.gather(*(outcome(queue, each) for each in submits))
    print(json.dumps(said), flush=True)
    await redis.aclose()


if __name__ == "__main__":
    for line in sys.stdin:
        asyncio.run(race(**json.loads(line)))
