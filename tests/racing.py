"""One of several processes that do something at the same moment: ``python -m tests.racing``.

For each line of JSON it is given, the arguments of :func:`race`, it says that it is ready, waits
for another line, and prints what became of what it then did at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis

from quota.ledger import Kind
from quota.redis_ledger import RedisLedger
from serving.jobs import Cell, JobQueue, JobSettings, Leases, Limits, Wish
from serving.plan.errors import LedgerRefused, ModelFailed, NotFound, RequestError, StaleLease
from tests.jobs import spec


class Racer:
    """What a process may be told to do, by name. Each says what became of it."""

    def __init__(self, redis: Redis, settings: JobSettings) -> None:
        self.cell, self.settings = Cell(redis), settings
        self.queue, self.ledger = JobQueue(self.cell, settings), RedisLedger(self.cell)

    async def submit(self, **what: Any) -> str:
        """The class of a job that was accepted, ``replayed``, or why it was refused; and its id."""
        limits, wish = Limits(**what.pop("limits", {})), Wish(**what.pop("wish", {}))
        try:
            admission = await self.queue.submit(
                **what, alias="sora-2", spec=spec(), limits=limits, wish=wish
            )
        except RequestError as refused:
            return f"{refused.code} -"
        if admission.job is None:
            return "deleted -"
        said = "replayed" if admission.replayed else admission.job.service_class
        return f"{said} {admission.job.id}"

    async def end(self, job_id: str, how: str) -> str:
        """``how`` it was ended, if it was not ended otherwise before, and its id."""
        job = await self.queue.find(job_id)
        if job is None:
            return f"gone {job_id}"
        replica = Leases(self.cell, job.pool, job.replica, self.settings)
        try:
            match how:
                case "completed":
                    await replica.complete(job, {}, spent_ms=1)
                case "failed":
                    await replica.fail(job, ModelFailed("x"), spent_ms=1)
                case "cancelled":
                    how = (await self.queue.cancel(job_id, user=job.user)).state
                case "deleted":
                    await self.queue.delete(job_id, user=job.user)
                case "tidied":  # nobody may wait, and nobody be lost
                    await self.cell.run("tidy", 1, "{}", 0, "{}")
        except (StaleLease, NotFound) as error:
            return f"{error.code} {job_id}"
        return f"{how} {job_id}"

    async def grant(self, **what: Any) -> str:
        """The entry, or why there is none, and the ref."""
        try:
            entry = await self.ledger.grant(**what, kind=Kind.PURCHASE)
        except LedgerRefused as refused:
            return f"{refused.code} {what['ref']}"
        return f"{entry} {what['ref']}"


async def race(url: str, settings: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    redis: Redis = Redis.from_url(url, decode_responses=True)
    racer = Racer(redis, JobSettings(**settings))
    await redis.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    doing: list[Awaitable[str]] = []
    for call in calls:
        do: Callable[..., Awaitable[str]] = getattr(racer, call.pop("do", "submit"))
        doing.append(do(**call))
    print(json.dumps(await asyncio.gather(*doing)), flush=True)
    await redis.aclose()


if __name__ == "__main__":
    for line in sys.stdin:
        asyncio.run(race(**json.loads(line)))
