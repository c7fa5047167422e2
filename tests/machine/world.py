"""One pool on a real Redis, and the model it is held to: how a step is done and compared."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.ledger import Entry, Kind
from quota.redis_ledger import RedisLedger
from quota.tiers import Surge, Tier, Tiers
from quota.verify import verify
from serving.jobs import Cell, Job, JobQueue, JobSettings, Leases, Upkeep, Wish
from serving.plan.classes import CLASSES, ClassPolicy, ServiceClass
from tests.clock import Clock
from tests.jobs import SHARES
from tests.ledger_model import GrantAsked
from tests.machine.comparison import POOL, SLACK_MS, USERS, compare
from tests.queue_model import Bounds, QueueModel, Submission
from tests.queue_state import QueueState, check, check_nothing_left, read_state

HOUR_MS = 3_600_000
LEASE_MS = 60_000
BOUNDS = JobSettings(attempts_max=2, queue_max=14, retention_s=30 * 3600, queue_ttl_s=26 * 3600)
SURGE_MS = 4_000_000
NEVER_MISSED = {each: ClassPolicy(share=0.3, first_step_s=1e9, factor=1e9) for each in CLASSES}
NUMBERS = st.sampled_from([(2, 1, 3.0), (4, 2, 0.7), (1, 3, 1.0)])

Draw = Callable[[st.SearchStrategy[Any]], Any]


def tiers(numbers: tuple[int, int, float]) -> Tiers:
    """Tiers of every kind, with these numbers."""
    daily, running, weight = numbers
    surge = Surge(generations_per_day=daily // 2, service_class=ServiceClass.RELAXED)
    return Tiers(
        default_tier="free",
        tiers={
            "free": Tier(generations_per_day=daily, running_jobs=running, surge=surge),
            "brief": Tier(requests_per_minute=2, queued_jobs=2, running_jobs=1, weight=weight),
            "pro": Tier(
                gpu_seconds_per_day=5000,
                beyond="refuse",
                weight=weight,
                service_class=ServiceClass.BURST,
                surge=Surge(service_class=ServiceClass.STANDARD),
            ),
            "paid": Tier(generations_per_day=daily + 1, beyond="credits", running_jobs=running),
            "unlimited": Tier(),
        },
    )


@dataclass
class Step:
    """Something that is done, and what the model does. What either answers is the same."""

    real: Callable[[], Awaitable[Any]]
    model: Callable[[QueueModel, Any], Any]
    """Given the real answer too, from which it takes no more than times of day."""


class World(RuleBasedStateMachine):
    """One pool, its users and its replicas."""

    server: RedisServer
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        self.clock.set(0)
        self.runner = asyncio.Runner()
        self.redis: Redis = Redis.from_url(self.server.url, decode_responses=True)
        self.cell = Cell(self.redis)
        self.queue, self.upkeep = JobQueue(self.cell, BOUNDS), Upkeep(self.cell, BOUNDS)
        self.ledger = RedisLedger(self.cell)
        self.speaker = Leases(self.cell, POOL, "r0", BOUNDS)
        self.ids = (f"video_{n}" for n in itertools.count())
        self.replicas = itertools.cycle(("r1", "r2"))  # one asks for one lease at a time
        self.tokens = (f"token{n}" for n in itertools.count())
        # Where two are alike, the one with the lesser ref is used first.
        self.refs = (f"ref_{n:04}" for n in itertools.count())
        self.submissions: list[Submission] = []
        self.grants: list[GrantAsked] = []
        self.reversals: list[str] = []
        self.runs: list[Job] = []
        self.state = QueueState()
        self.last_entry: str | None = None

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(numbers=NUMBERS)
    def begin(self, numbers: tuple[int, int, float]) -> None:
        self.run(self._begin(numbers))

    async def _begin(self, numbers: tuple[int, int, float]) -> None:
        await self.redis.flushall()
        await self.cell.check_schema()
        await self.queue.apply_tiers(tiers(numbers))
        await self.queue.apply_objectives({POOL: NEVER_MISSED})
        await self.speak()
        now_ms = (await read_state(self.redis)).now_ms
        noon = now_ms + 6 * HOUR_MS + HOUR_MS // 3
        self.model = QueueModel(
            Bounds(
                queue_max=BOUNDS.queue_max,
                attempts_max=BOUNDS.attempts_max,
                queue_ttl_ms=1000 * BOUNDS.queue_ttl_s,
                retention_ms=1000 * BOUNDS.retention_s,
                idempotent_ms=1000 * Wish.idempotency_s,
                retry_ms=1000 * Wish.retry_window_s,
                surge_ms=SURGE_MS,
                shares=SHARES,
            ),
            tiers(numbers),
            midnights_ms=[noon + day * 24 * HOUR_MS for day in range(-3, 90)],
            now_ms=now_ms,
        )
        for user, name in zip(USERS, ("free", "brief", "pro", "paid"), strict=True):
            await self.set_tier(user, name)
            self.model.set_tier(user, name)
        await self._give_first_credits(now_ms)
        self.state = await read_state(self.redis)
        self.seen_s = time.monotonic()

    async def _give_first_credits(self, now_ms: float) -> None:
        """All begin with something, but the last: with a debt, of what was spent and refunded."""
        real, model = self.ledger, self.model.ledger
        for user in USERS:
            ref = next(self.refs)
            asked = GrantAsked(user, ref, 20, Kind.PURCHASE, None, None)
            self.last_entry = await real.grant(user, ref=ref, amount=20, kind=Kind.PURCHASE)
            model.grant(asked, now_ms)
            self.grants.append(asked)
        refund = next(self.refs)
        await real.hold(user, "video_before", 5)
        await real.capture("video_before", 5)
        self.last_entry = await real.reverse(ref, ref=refund)
        model.hold(user, "video_before", 5, now_ms)
        model.settle("video_before", 5, now_ms)
        model.reverse(ref, refund, None, now_ms)
        self.reversals.append(refund)

    async def set_tier(self, user: str, name: str) -> None:
        await self.redis.hset(self.cell.key("user", user), mapping={"tier": name})

    async def speak(self) -> None:
        await self.speaker.announce(host="h", pid=1, slots=1, free=0, age_ms=0)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.run(self._end())
        self.run(self.redis.aclose())
        self.runner.close()

    async def _end(self) -> None:
        """Everybody gives up and goes: nothing of it is left, and the books say why."""
        for job in list(self.model.jobs.values()):
            await self.queue.delete(job.id, user=job.user)
        await self.upkeep.tidy()
        state = await read_state(self.redis)
        check(state, retiered=USERS)
        check_nothing_left(state)
        await self.books_verify()

    async def books_verify(self) -> None:
        assert (await verify(self.cell)).differences == []

    # Doing things, one or two at a time.

    def do(self, *steps: Step) -> None:
        """At once: then one after the other in some order, as answers and state say."""
        self.run(self._do(steps))

    async def _do(self, steps: tuple[Step, ...]) -> None:
        await self._let_time_pass()
        answers = await asyncio.gather(*(step.real() for step in steps))
        state = await read_state(self.redis)
        entries = await self._new_entries(state)
        wrong = []
        for order in itertools.permutations(range(len(steps))):
            model = copy.deepcopy(self.model) if len(steps) > 1 else self.model
            expected = {i: steps[i].model(model, answers[i]) for i in order}
            if [expected[i] for i in range(len(steps))] != answers:
                wrong.append(f"{answers} is not {expected}")
                continue
            passing = model.passing
            model.forget_what_expired()
            try:
                compare(model, state, entries)
            except AssertionError as error:
                wrong.append(str(error))
                continue
            # Redis forgets an expired key when somebody asks for it, or sometime.
            await self.redis.exists(*(self.cell.key(name) for name in passing))
            self.model, self.state = model, state
            return
        raise AssertionError("; ".join(wrong))

    async def _new_entries(self, state: QueueState) -> list[Entry]:
        """What was written since this was asked last, all of it."""
        known = len(self.model.ledger.entries)
        if state.lengths.get("ledger", 0) == known:
            return []
        new = list(await self.ledger.entries(after=self.last_entry))
        assert known + len(new) == state.lengths["ledger"]
        self.last_entry = new[-1].id
        return new

    async def _let_time_pass(self) -> None:
        """Only forward, and no faster than here."""
        state = await read_state(self.redis)
        passed_ms = 1000 * (time.monotonic() - self.seen_s)
        assert state.now_ms >= self.state.now_ms
        assert -SLACK_MS <= state.now_ms - self.model.now_ms <= passed_ms + SLACK_MS
        self.model.now_ms = state.now_ms
        self.model.behind_ms = float(state.strings.get("ahead", 0))
        self.seen_s = time.monotonic()

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        if not hasattr(self, "model"):
            return
        check(self.state, retiered=self.model.retiered)
        assert self.model.ledger.total() == 0
