"""The ledger in Redis: one script for each change. ``lua/_ledger.lua`` lists the keys."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from quota.ledger import (
    PRIORITIES,
    Balance,
    Entry,
    Grant,
    HoldState,
    Kind,
    Settlement,
    Sums,
    Verified,
    check_amount,
    check_grant,
    check_names,
    check_reason,
    refusal,
)
from quota.pages import read_page
from serving.plan.errors import LedgerRefused


class Runner(Protocol):
    """A cell, as the queue has it: its Redis, the names of its keys, and its scripts."""

    redis: Any

    def key(self, *parts: str) -> str: ...

    async def run(self, script: str, *args: str | int) -> Any: ...

    def answers(self) -> AbstractAsyncContextManager[None]: ...


class RedisLedger:
    """:class:`quota.ledger.Ledger` of one cell; :class:`ServiceUnavailable` if Redis is away."""

    def __init__(self, cell: Runner) -> None:
        self.cell = cell

    async def grant(
        self,
        user: str,
        *,
        ref: str,
        amount: int,
        kind: Kind,
        priority: int | None = None,
        expires_ms: int | None = None,
        reason: str = "",
    ) -> str:
        check_names(user=user, ref=ref)
        check_amount(amount)
        priority = PRIORITIES[kind] if priority is None else priority
        check_grant(priority, expires_ms)
        check_reason(reason)
        expiry = "" if expires_ms is None else expires_ms
        return await self._entry("grant", user, ref, amount, kind, priority, expiry, reason)

    async def take(self, user: str, *, ref: str, amount: int, reason: str) -> str:
        check_names(user=user, ref=ref)
        check_amount(amount)
        check_reason(reason)
        return await self._entry("take", user, ref, amount, reason)

    async def reverse(
        self, of: str, *, ref: str, amount: int | None = None, reason: str = ""
    ) -> str:
        check_names(of=of, ref=ref)
        if amount is not None:
            check_amount(amount)
        check_reason(reason)
        return await self._entry("reverse", of, ref, "" if amount is None else amount, reason)

    async def _entry(self, script: str, *args: str | int) -> str:
        outcome, told = await self.cell.run(script, *args)
        if outcome != "done":
            raise refusal(outcome, told)
        return str(told)

    async def hold(self, user: str, job: str, amount: int) -> None:
        check_names(user=user, job=job)
        check_amount(amount)
        outcome, *told = await self.cell.run("hold", user, job, amount)
        if outcome != "held":
            raise refusal(outcome, *told)

    async def capture(self, job: str, amount: int) -> Settlement | None:
        check_amount(amount, least=0)
        return await self._settle("capture", job, amount)

    async def release(self, job: str) -> Settlement | None:
        return await self._settle("release", job)

    async def _settle(self, script: str, *args: str | int) -> Settlement | None:
        answer = await self.cell.run(script, *args)
        if not answer:
            return None
        state, told = answer
        if state == "much":
            raise refusal(state, told)
        return Settlement(HoldState(state), int(told))

    async def expire(self, most: int = 100) -> int:
        return int(await self.cell.run("expire", most))

    async def balance(self, user: str) -> Balance:
        spendable, held, debt, grants = await self.cell.run("balance", user)
        return Balance(int(spendable), int(held), int(debt), [_grant(*row) for row in grants])

    async def sums(self) -> Sums:
        redis, key = self.cell.redis, self.cell.key
        async with self.cell.answers(), redis.pipeline(transaction=True) as pipe:
            pipe.hmget(key("ledger", "sums"), "held", "released")
            pipe.hget(key("ledger", "accounts"), "earned")
            (held, released), captured = await pipe.execute()
        return Sums(int(held or 0), int(captured or 0), int(released or 0))

    async def note_verified(self, differences: int) -> None:
        """Keep what a verification found, for whoever watches."""
        redis = self.cell.redis
        async with self.cell.answers():
            seconds, micros = await redis.time()
            found = {"at_s": seconds + micros / 1e6, "differences": differences}
            await redis.hset(self.cell.key("ledger", "verified"), mapping=found)

    async def verified(self) -> Verified | None:
        """What the last verification found; None if there was none."""
        async with self.cell.answers():
            found = await self.cell.redis.hgetall(self.cell.key("ledger", "verified"))
        return Verified(float(found["at_s"]), int(found["differences"])) if found else None

    async def entries(self, *, after: str | None = None, limit: int = 1000) -> Sequence[Entry]:
        """As the protocol has it, of those that are not archived; :class:`LedgerRefused`
        (``archived``) if some in between are."""
        page = await read_page(self.cell, after, limit)
        if after is not None and page.misses(after):
            raise LedgerRefused(
                "Entries were archived while they were read. Read them again.", code="archived"
            )
        return page.entries

    async def history(
        self, user: str, *, before: str | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        redis, mine = self.cell.redis, self.cell.key("entries", user)
        async with self.cell.answers():
            # All at once, since it grows at the front.
            ids = await redis.lrange(mine, 0, -1)
            if before is not None:
                ids = ids[ids.index(before) + 1 :] if before in ids else []
            async with redis.pipeline(transaction=False) as pipe:
                for entry_id in ids[:limit]:
                    pipe.xrange(self.cell.key("ledger"), entry_id, entry_id)
                found_rows = await pipe.execute()
        return [Entry.from_fields(*row) for rows in found_rows for row in rows]


def _grant(
    ref: str, kind: str, amount: str, left: str, priority: str, created_ms: str, expires_ms: str
) -> Grant:
    return Grant(
        ref=ref,
        kind=Kind(kind),
        amount=int(amount),
        left=int(left),
        priority=int(priority),
        created_ms=int(created_ms),
        expires_ms=int(expires_ms) if expires_ms else None,
    )
