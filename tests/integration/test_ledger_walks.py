"""Any sequence of what a ledger can be asked, of Redis and of SQLite: the same answers, the same
entries, and after every step books that hold, in Redis and in a copy that follows it.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.follower import AuditCopy
from quota.ledger import Balance, Entry, Kind, Ledger
from quota.pages import read_page
from quota.redis_ledger import RedisLedger
from quota.sqlite_ledger import SqliteLedger
from quota.verify import verify
from serving.jobs import Cell
from serving.plan.errors import LedgerRefused
from tests.clock import Clock

T = TypeVar("T")

EXAMPLES = 40
HOUR_MS = 3_600_000
HALF_MS = HOUR_MS // 2
USERS = st.sampled_from(["ann", "ann", "bob"])
AMOUNTS = st.integers(1, 12)


@pytest.fixture(scope="session")
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    """The server under test is one whose clock can be moved."""
    return moved_redis_server[0]


def said(answer: object) -> object:
    """What both must agree on: ids differ."""
    return None if isinstance(answer, str) else answer


def told(entry: Entry) -> tuple[object, ...]:
    return (
        *(entry.type, entry.user, entry.ref, entry.of, entry.kind, entry.priority),
        *(entry.expires_ms, entry.reason, dict(entry.postings)),
    )


class Walk(RuleBasedStateMachine):
    """What was done before is often asked again, otherwise, or too late."""

    grants: Bundle[str] = Bundle("grants")
    reversals: Bundle[str] = Bundle("reversals")
    jobs: Bundle[str] = Bundle("jobs")

    url: ClassVar[str]
    clock: ClassVar[Clock]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.redis: Redis = Redis.from_url(self.url, decode_responses=True)
        self.cell = Cell(self.redis)
        self.real = RedisLedger(self.cell)
        self.now_ms = 0
        self.oracle = SqliteLedger(Path(self.folder.name) / "ledger.db", lambda: self.now_ms)
        self.copy = AuditCopy(Path(self.folder.name) / "copy.db")
        self.clock.set(0)
        self.hours = 0
        self.numbers = itertools.count()
        self.seen = 0

    def teardown(self) -> None:
        self.oracle.close()
        self.copy.close()
        self.run(self.redis.aclose())
        self.loop.close()
        self.folder.cleanup()
        self.clock.set(0)

    def new(self, kind: str) -> str:
        self.last = f"{kind}_{next(self.numbers)}"
        return self.last

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.loop.run_until_complete(wait())

    @initialize()
    def begin(self) -> None:
        self.run(self.redis.flushall())
        seconds, _ = self.run(self.redis.time())
        self.began_ms = 1000 * seconds

    def both(self, ask: Callable[[Ledger], Coroutine[Any, Any, object]]) -> None:
        """Ask Redis, then SQLite at the same time of day."""
        answers = [self.answer(ask(self.real))]
        seconds, micros = self.run(self.redis.time())
        self.now_ms = 1000 * seconds + micros // 1000
        new = self.run(self.real.entries())[self.seen :]
        if new:
            self.now_ms = new[0].at_ms
        answers.append(self.answer(ask(self.oracle)))
        assert answers[0] == answers[1]
        mirrored = self.run(self.oracle.entries())[self.seen :]
        assert [told(entry) for entry in new] == [told(entry) for entry in mirrored]
        self.seen += len(new)

    def answer(self, work: Coroutine[Any, Any, object]) -> object:
        try:
            return said(self.run(work))
        except LedgerRefused as error:
            return error.code, error.message

    @rule(
        target=grants,
        user=USERS,
        amount=AMOUNTS,
        kind=st.sampled_from(Kind),
        hours=st.none() | st.integers(0, 2),
    )
    def grant(self, user: str, amount: int, kind: Kind, hours: int | None) -> str:
        self._grant(user, self.new("pay"), amount, kind, hours)
        return self.last

    @rule(
        user=USERS,
        ref=st.one_of(grants, reversals),
        amount=AMOUNTS,
        kind=st.sampled_from(Kind),
        hours=st.integers(-1, 0),
    )
    def grant_again(self, user: str, ref: str, amount: int, kind: Kind, hours: int) -> None:
        self._grant(user, ref, amount, kind, hours)

    def _grant(self, user: str, ref: str, amount: int, kind: Kind, hours: int | None) -> None:
        # At half past, while the clock moves by the hour: no step falls on it.
        expires_ms = None
        if hours is not None:
            expires_ms = self.began_ms + (self.hours + hours) * HOUR_MS + HALF_MS
        self.both(
            lambda ledger: ledger.grant(
                user, ref=ref, amount=amount, kind=kind, expires_ms=expires_ms, reason="r"
            )
        )

    @rule(user=USERS, ref=st.none() | grants, amount=AMOUNTS)
    def take(self, user: str, ref: str | None, amount: int) -> None:
        ref = ref or self.new("adjust")
        self.both(lambda ledger: ledger.take(user, ref=ref, amount=amount, reason="r"))

    @rule(target=jobs, user=USERS, amount=AMOUNTS)
    def hold(self, user: str, amount: int) -> str:
        job = self.new("video")
        self.both(lambda ledger: ledger.hold(user, job, amount))
        return job

    @rule(user=USERS, job=jobs, amount=AMOUNTS)
    def hold_again(self, user: str, job: str, amount: int) -> None:
        self.both(lambda ledger: ledger.hold(user, job, amount))

    @rule(job=jobs, amount=st.integers(0, 12))
    def capture(self, job: str, amount: int) -> None:
        self.both(lambda ledger: ledger.capture(job, amount))

    @rule(job=jobs)
    def release(self, job: str) -> None:
        self.both(lambda ledger: ledger.release(job))

    @rule(target=reversals, of=st.one_of(grants, reversals), amount=st.none() | AMOUNTS)
    def reverse(self, of: str, amount: int | None) -> str:
        ref = self.new("refund")
        self.both(lambda ledger: ledger.reverse(of, ref=ref, amount=amount, reason="r"))
        return ref

    @rule(of=st.one_of(grants, reversals), ref=st.one_of(grants, reversals))
    def reverse_again(self, of: str, ref: str) -> None:
        self.both(lambda ledger: ledger.reverse(of, ref=ref, reason="r"))

    @rule(most=st.sampled_from([1, 100]))
    def expire(self, most: int) -> None:
        self.both(lambda ledger: ledger.expire(most))

    @rule(limit=st.sampled_from([1, 3, 100]))
    def the_copy_follows(self, limit: int) -> None:
        last = self.copy.last
        page = self.run(read_page(self.cell, last.id if last else None, limit))
        self.copy.append(last, page)

    @rule(hours=st.integers(1, 3))
    def time_passes(self, hours: int) -> None:
        self.hours += hours
        self.clock.jump(3600 * hours)

    @invariant()
    def books_hold(self) -> None:
        assert self.run(verify(self.cell)).differences == []
        for user in ("ann", "bob"):
            has = self.run(self.real.balance(user))
            assert has.spendable >= 0
            assert has.held >= 0
            assert has.debt >= 0
            if self.seen:
                seconds, micros = self.run(self.redis.time())
                self.now_ms = 1000 * seconds + micros // 1000
                mirrored = self.run(self.oracle.balance(user))
                assert _timeless(has) == _timeless(mirrored)
                if self.copy.count() == self.seen:
                    assert self.copied(user) == has

    def copied(self, user: str) -> Balance:
        """The copy's balance, at the cell's time of day."""
        self.copy._now_ms = lambda: self.now_ms
        return self.run(self.copy.balance(user))


def _timeless(balance: Any) -> tuple[object, ...]:
    grants = [(grant.ref, grant.kind, grant.amount, grant.left) for grant in balance.grants]
    return balance.spendable, balance.held, balance.debt, grants


def test_redis_and_sqlite_keep_the_same_books(redis_server: RedisServer, clock: Clock) -> None:
    Walk.url, Walk.clock = redis_server.url, clock
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
