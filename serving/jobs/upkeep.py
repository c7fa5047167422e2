"""What time brings about: lapsed leases, jobs that waited too long or ended long ago, garbage.

Any process may do this at any time, and several at once: each script is atomic.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.jobs.cell import Cell, error_json
from serving.jobs.leases import lost_error
from serving.jobs.settings import JobSettings
from serving.plan.errors import Expired


class Upkeep:
    """The housekeeping of one cell."""

    def __init__(self, cell: Cell, settings: JobSettings | None = None) -> None:
        self._cell = cell
        self._settings = settings or JobSettings()

    async def tidy(self) -> int:
        """Reap, expire and forget what is due; how many jobs were forgotten."""
        limits = self._settings
        expired = Expired(
            f"The job waited {limits.queue_ttl_s} s without a replica becoming free, which is the "
            "limit. Submit it again later."
        )
        forgotten = await self._cell.run(
            "tidy",
            limits.attempts_max,
            lost_error(limits.attempts_max),
            limits.queue_ttl_s * 1000,
            error_json(expired),
        )
        return int(forgotten)

    async def recover(self) -> int:
        """Take back every lease. Only for a Redis that no running replica uses."""
        attempts_max = self._settings.attempts_max
        return int(await self._cell.run("recover", attempts_max, lost_error(attempts_max)))

    async def garbage(self, limit: int) -> Sequence[str]:
        """Ids of jobs whose files are of no use any more, the oldest first.

        Only from a while ago: a run that was stopped may still have been uploading.
        """
        async with self._cell.answers():
            seconds, micros = await self._cell.redis.time()
            now_ms = seconds * 1000 + micros // 1000
            ids: list[str] = await self._cell.redis.zrange(
                self._cell.key("garbage"),
                "-inf",
                now_ms - self._settings.garbage_s * 1000,
                byscore=True,
                offset=0,
                num=limit,
            )
        return ids

    async def postponed(self, job_id: str) -> None:
        """The files of this job could not be removed: after all others, then."""
        async with self._cell.answers():
            seconds, _ = await self._cell.redis.time()
            await self._cell.redis.zadd(
                self._cell.key("garbage"), {job_id: seconds * 1000}, xx=True
            )

    async def removed(self, job_id: str) -> None:
        """The files of this job are gone."""
        async with self._cell.answers():
            await self._cell.redis.zrem(self._cell.key("garbage"), job_id)
