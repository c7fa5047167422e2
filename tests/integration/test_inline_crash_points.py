"""An ingress that dies, loses its connection or takes Redis with it after any command of what it
does while somebody listens: it is paid for once, or not at all, and no hold stays."""

from __future__ import annotations

from contextlib import suppress

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.ledger import EntryType, Kind
from serving.jobs import InlineLease, InlineLeases, JobSettings, Limits, Wish
from serving.plan.classes import ServiceTier
from serving.plan.errors import ModelFailed, StaleLease
from tests.crash_points import Actor, Case
from tests.queue_state import QueueState

pytestmark = pytest.mark.asyncio

PRICE, GRANTED = 40, 100
NONE_LEFT = Limits(generations=0, beyond="refuse", days_ms=[0, 10**14])
POOL = "voice"


async def bought(actor: Actor) -> None:
    await actor.ledger.grant("ann", ref="pay", amount=GRANTED, kind=Kind.PURCHASE)


async def begin(actor: Actor) -> tuple[InlineLeases, InlineLease]:
    inline = InlineLeases(actor.cell, "i1", JobSettings())
    lease = await actor.ask(
        inline.grant,
        "audio",
        user="ann",
        pool=POOL,
        alias="tts-1",
        asked={"input": "hello"},
        est_device_ms=1000,
        price=PRICE,
        limits=NONE_LEFT,
        wish=Wish(ServiceTier.PRIORITY),
    )
    # Over by then, if this is done again.
    with suppress(StaleLease):
        await actor.ask(inline.renew, lease, spent_ms=5, step=1, remaining_ms=5)
    return inline, lease


async def speaks(actor: Actor) -> None:
    inline, lease = await begin(actor)
    await actor.ask(inline.complete, lease, {"seconds": 2.0}, spent_ms=10)


async def is_left(actor: Actor) -> None:
    inline, lease = await begin(actor)
    await actor.ask(inline.left, lease, made=0.5, spent_ms=10)


async def fails(actor: Actor) -> None:
    inline, lease = await begin(actor)
    await actor.ask(inline.fail, lease, ModelFailed("x"), spent_ms=10)


async def listens(actor: Actor) -> None:
    await bought(actor)
    await begin(actor)


async def lapsed(actor: Actor) -> None:
    await listens(actor)
    await actor.redis.zadd(actor.cell.key("leased", POOL), {"audio": 1})


async def tidies(actor: Actor) -> None:
    await actor.ask(actor.upkeep.tidy)
    await actor.ask(actor.upkeep.tidy)


async def books(actor: Actor) -> tuple[list[EntryType], tuple[int, int]]:
    has = await actor.ledger.balance("ann")
    return [entry.type for entry in await actor.ledger.entries()], (has.spendable, has.held)


async def it_is_paid_once(actor: Actor, state: QueueState) -> None:
    assert (state.jobs["audio"]["state"], state.jobs["audio"]["credits"]) == ("completed", "40")
    written = [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE]
    assert await books(actor) == (written, (GRANTED - PRICE, 0))


async def half_is_paid_once(actor: Actor, state: QueueState) -> None:
    assert (state.jobs["audio"]["state"], state.jobs["audio"]["credits"]) == ("cancelled", "20")
    written = [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE]
    assert await books(actor) == (written, (GRANTED - PRICE // 2, 0))


async def it_came_back_once(actor: Actor, state: QueueState) -> None:
    assert (state.jobs["audio"]["state"], state.jobs["audio"]["credits"]) == ("failed", "0")
    assert await books(actor) == (
        [EntryType.GRANT, EntryType.HOLD, EntryType.RELEASE],
        (GRANTED, 0),
    )


CASES = (
    Case(speaks, bought, it_is_paid_once),
    Case(is_left, bought, half_is_paid_once),
    Case(fails, bought, it_came_back_once),
    Case(tidies, lapsed, it_came_back_once),
)


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
@pytest.mark.parametrize("how", ["dies", "is cut off", "kills"])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_after_any_command_what_is_heard_is_paid_once_or_not_at_all(
    redis: Redis, redis_server: RedisServer, case: Case, how: str, heard: bool
) -> None:
    await case.cut_short(redis, redis_server, how, heard=heard)
