"""A process that dies, loses its connection or takes Redis with it after any command of what it
does with credits: nothing is half paid, and whoever does it again pays, or is paid back, once."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.ledger import EntryType, Kind
from serving.jobs import JobSettings, Limits, State, Upkeep, Wish
from serving.plan.classes import ServiceTier
from serving.plan.errors import ModelFailed, NotFound
from tests.crash_points import POOL, Actor, Case
from tests.jobs import LEASE_MS, spec
from tests.queue_state import QueueState

pytestmark = pytest.mark.asyncio

HOUR_MS = 3_600_000
PRICE, GRANTED = 40, 100
NONE_LEFT = Limits(generations=0, beyond="refuse", days_ms=[0, 10**14])
WISH = Wish(ServiceTier.PRIORITY, body_sha256="body")
ids = (f"video_{n}" for n in itertools.count())


async def bought(actor: Actor) -> None:
    await actor.ledger.grant("ann", ref="pay", amount=GRANTED, kind=Kind.PURCHASE)


async def submits(actor: Actor, job_id: str = "video", wish: Wish = WISH) -> None:
    await actor.ask(
        actor.queue.submit,
        job_id,
        user="ann",
        alias="sora-2",
        spec=spec(),
        est_device_ms=1000,
        price=PRICE,
        limits=NONE_LEFT,
        wish=wish,
    )


async def one_waits(actor: Actor) -> None:
    await bought(actor)
    await submits(actor)


async def one_runs(actor: Actor) -> None:
    await one_waits(actor)
    assert await actor.leases.lease(LEASE_MS)


async def ones_lease_ran_out(actor: Actor) -> None:
    await one_runs(actor)
    await actor.redis.zadd(actor.cell.key("leased", POOL), {"video": 1})


async def something_expired(actor: Actor) -> None:
    """A gift, part of which is held for a job, and another that was never used."""
    now_ms = int(time.time() * 1000)
    gift: dict[str, Any] = {"kind": Kind.PROMOTION, "expires_ms": now_ms + HOUR_MS}
    await actor.ledger.grant("ann", ref="gift", amount=7, **gift)
    await one_waits(actor)
    await actor.ledger.grant("bob", ref="his", amount=5, **gift)
    # As after the clock of Redis was set back by two hours: ours goes on from where it was.
    seen, ahead = (actor.cell.key(name) for name in ("seen", "ahead"))
    await actor.redis.mset({seen: now_ms + 2 * HOUR_MS, ahead: 2 * HOUR_MS})


# What is done, by whoever does it the first time and again.


async def submits_under_a_key(actor: Actor) -> None:
    """As an ingress, which makes up an id for each request that comes in."""
    await submits(actor, next(ids), Wish(ServiceTier.PRIORITY, None, "body", "key"))
    await actor.ask(actor.queue.remember, "ann", "key", "made")


async def works(actor: Actor) -> None:
    """As a replica that hands the job back once."""
    while lease := await actor.ask(actor.leases.lease, LEASE_MS):
        if not lease.job.spent_ms:
            await actor.ask(actor.leases.give_back, lease.job, spent_ms=300)
            continue
        await actor.ask(actor.leases.complete, lease.job, {"by": "us"}, spent_ms=500)


async def fails(actor: Actor) -> None:
    while lease := await actor.ask(actor.leases.lease, LEASE_MS):
        await actor.ask(actor.leases.fail, lease.job, ModelFailed("x"), spent_ms=300)


async def cancels_and_deletes(actor: Actor) -> None:
    with suppress(NotFound):
        await actor.ask(actor.queue.cancel, "video", user="ann")
    await actor.ask(actor.queue.delete, "video", user="ann")


async def is_lost(actor: Actor) -> None:
    """Its only attempt; and somebody else wants it cancelled."""
    upkeep = Upkeep(actor.cell, JobSettings(attempts_max=1))
    await actor.ask(upkeep.tidy)
    await actor.ask(actor.queue.cancel, "video", user="ann")


async def waits_too_long(actor: Actor) -> None:
    """Since nobody may wait at all."""
    for _ in range(3):
        await actor.ask(actor.cell.run, "tidy", 3, "{}", 0, "{}")


async def tidies(actor: Actor) -> None:
    for _ in range(4):
        await actor.ask(actor.upkeep.tidy)


async def cancels_late_and_tidies(actor: Actor) -> None:
    """What comes back to a grant that has expired, and one that nobody used."""
    await actor.ask(actor.queue.cancel, "video", user="ann")
    await tidies(actor)


async def keeps_books(actor: Actor) -> None:
    """As a payment provider and an operator."""
    ledger = actor.ledger
    expires_ms = int(time.time() * 1000) + 10**9
    gift: dict[str, Any] = {"amount": 30, "kind": Kind.PROMOTION, "expires_ms": expires_ms}
    await actor.ask(ledger.grant, "ann", ref="gift", **gift)
    await actor.ask(ledger.take, "ann", ref="oops", amount=50, reason="x")
    await actor.ask(ledger.reverse, "pay", ref="dispute")
    await actor.ask(ledger.reverse, "dispute", ref="won")
    await actor.ask(ledger.reverse, "pay", ref="refund", amount=30)


# What is there when it is done.


async def books(actor: Actor) -> tuple[list[EntryType], tuple[int, int, int]]:
    """What was written, and what may be spent, is held and is owed."""
    has = await actor.ledger.balance("ann")
    written = [entry.type for entry in await actor.ledger.entries()]
    return written, (has.spendable, has.held, has.debt)


async def it_is_held_once(actor: Actor, state: QueueState) -> None:
    assert len(state.jobs) == 1
    assert await books(actor) == (
        [EntryType.GRANT, EntryType.HOLD],
        (GRANTED - PRICE, PRICE, 0),
    )


async def it_is_paid_once(actor: Actor, state: QueueState) -> None:
    assert (state.jobs["video"]["state"], state.jobs["video"]["credits"]) == ("completed", "40")
    assert await books(actor) == (
        [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE],
        (GRANTED - PRICE, 0, 0),
    )


async def it_came_back_once(actor: Actor, state: QueueState) -> None:
    job = state.jobs.get("video")
    assert job is None or State(job["state"]) in (State.FAILED, State.EXPIRED)
    assert job is None or job["credits"] == "0"
    written = [EntryType.GRANT, EntryType.HOLD, EntryType.RELEASE]
    assert await books(actor) == (written, (GRANTED, 0, 0))


async def what_expired_is_booked_once(actor: Actor, state: QueueState) -> None:
    given, lost = EntryType.GRANT, EntryType.EXPIRY
    written = [given, given, EntryType.HOLD, given, EntryType.RELEASE, lost, lost]
    assert await books(actor) == (written, (GRANTED, 0, 0))
    assert state.hashes["ledger:accounts"]["expired"] == "12"


async def each_is_booked_once(actor: Actor, state: QueueState) -> None:
    taken_back = [EntryType.REVERSAL, EntryType.RESTORATION, EntryType.REVERSAL]
    written = [EntryType.GRANT, EntryType.HOLD, EntryType.GRANT, EntryType.ADJUSTMENT]
    # Of 130, 40 are held, 50 were taken and 30 refunded.
    assert await books(actor) == (written + taken_back, (10, PRICE, 0))


CASES = (
    Case(submits_under_a_key, bought, it_is_held_once),
    Case(works, one_waits, it_is_paid_once, recovers=True),
    Case(fails, one_waits, it_came_back_once, recovers=True),
    Case(cancels_and_deletes, one_runs, it_came_back_once),
    Case(is_lost, ones_lease_ran_out, it_came_back_once),
    Case(waits_too_long, one_waits, it_came_back_once),
    Case(cancels_late_and_tidies, something_expired, what_expired_is_booked_once),
    Case(keeps_books, one_waits, each_is_booked_once),
)


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
@pytest.mark.parametrize("how", ["dies", "is cut off", "kills"])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_after_any_command_everything_is_paid_once_or_not_at_all(
    redis: Redis, redis_server: RedisServer, case: Case, how: str, heard: bool
) -> None:
    await case.cut_short(redis, redis_server, how, heard=heard)
