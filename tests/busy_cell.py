"""A cell that did a little of everything with credits, for tests of what its log is good for."""

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis

from quota.ledger import Kind
from quota.redis_ledger import RedisLedger
from quota.tiers import Tier, Tiers
from quota.verify import verify
from serving.jobs import (
    Cell,
    JobQueue,
    JobSettings,
    Leases,
    Limits,
    Phase,
    Upkeep,
    Wish,
    compare_holds,
)
from serving.plan.classes import ServiceTier
from serving.plan.errors import ModelFailed
from tests.jobs import LEASE_MS, submit
from tests.queue_state import check, read_state

DAY_MS = 24 * 3600 * 1000
BOUNDS = JobSettings(garbage_s=0)
PRIORITY = Wish(ServiceTier.PRIORITY)


class BusyCell:
    """Its jobs are paid from the allowance, or from credits where it is used up."""

    def __init__(self, redis: Redis) -> None:
        self.cell = Cell(redis)
        self.ledger = RedisLedger(self.cell)
        self.queue = JobQueue(self.cell, BOUNDS)
        self.leases = Leases(self.cell, "demo-wan", "r1", BOUNDS)
        self.upkeep = Upkeep(self.cell, BOUNDS)

    async def begin(self) -> None:
        """Credits of each kind are given, and jobs are made, fail, are lost and are cancelled."""
        await self.cell.check_schema()
        await self.queue.apply_tiers(Tiers(default_tier="free", tiers={"free": Tier(weight=2)}))
        await self.ledger.grant("ann", ref="pay_1", amount=1000, kind=Kind.PURCHASE)
        await self.ledger.grant("ann", ref="gift_1", amount=50, kind=Kind.PROMOTION)
        await self.submit("allowed", wish=Wish(), limits=self.limits(1))
        for job_id in ("made", "failed", "lost", "yielded"):
            await self.submit(job_id)
        await self.work()
        await self.submit("cancelled")
        await self.queue.cancel("cancelled", user="ann")

    async def go_on(self) -> None:
        """Credits expire, also those of a job that runs; payments are taken back; one job runs and
        one waits in the end."""
        soon_ms = int(time.time() * 1000) + 250
        for ref in ("brief_1", "brief_2"):
            await self.ledger.grant(
                "bob", ref=ref, amount=30, kind=Kind.PROMOTION, expires_ms=soon_ms
            )
        await self.submit("in_time", user="bob", price=40)
        await asyncio.sleep(0.3)
        await self.ledger.expire()
        await self.queue.cancel("in_time", user="bob")
        await self.submit("running")
        await self.leases.lease(LEASE_MS)
        await self.ledger.reverse("pay_1", ref="refund_1", amount=100)
        await self.ledger.reverse("pay_1", ref="dispute_1")
        await self.ledger.reverse("dispute_1", ref="dispute_1_won")
        await self.ledger.take("ann", ref="fix_1", amount=20, reason="by hand")
        await self.submit("waiting")
        await self.queue.delete("made", user="ann")
        await self.upkeep.tidy()

    async def work(self) -> None:
        """As a replica: what becomes of a job is in its name."""
        lost, yielded = False, False
        while lease := await self.leases.lease(LEASE_MS):
            job = lease.job
            match job.id:
                case "failed":
                    await self.leases.fail(job, ModelFailed("x"))
                case "lost":
                    lost = True
                case "yielded" if not yielded:
                    yielded = True
                    await self.leases.heartbeat(
                        job,
                        lease_ms=LEASE_MS,
                        phase=Phase.DENOISE,
                        step=2,
                        remaining_ms=1,
                        spent_ms=300,
                    )
                    await self.leases.give_back(job, spent_ms=300)
                case _:
                    await self.leases.complete(job, {"artifacts": {}}, spent_ms=500)
        if lost:
            await self.upkeep.recover()
            lease = await self.leases.lease(LEASE_MS)
            assert lease is not None
            await self.leases.complete(lease.job, {"artifacts": {}}, spent_ms=500)

    async def submit(
        self,
        job_id: str,
        user: str = "ann",
        price: int = 60,
        wish: Wish = PRIORITY,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or self.limits(0)
        await submit(self.queue, user=user, job_id=job_id, price=price, wish=wish, limits=limits)

    def limits(self, generations: int) -> Limits:
        midnight_ms = int(time.time() * 1000) // DAY_MS * DAY_MS
        days_ms = [midnight_ms + DAY_MS * days for days in (-1, 0, 1, 2)]
        return Limits("free", generations=generations, beyond="refuse", days_ms=days_ms)


async def check_whole(redis: Redis) -> None:
    """Whatever it did so far: books that hold, jobs that agree with them, and a queue in order."""
    cell = Cell(redis)
    assert (await verify(cell)).differences == []
    assert await compare_holds(cell) == []
    check(await read_state(redis))
