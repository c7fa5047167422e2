"""Events of payments that many hear at once, and a process that dies over one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from deployments.redis_server import RedisServer
from quota.ledger import EntryType
from quota.payments.provider import (
    Checkout,
    Event,
    Outcome,
)
from serving.jobs import Cell
from serving.plan.errors import ServiceUnavailable
from tests.dying import dying_after
from tests.payments import (
    PURCHASE,
    Shop,
    disputed,
    paid,
    refunded,
)

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def shop(cell: Cell) -> Shop:
    await cell.redis.set(cell.key("cell_id"), "cell_a")
    return Shop(cell)


async def clients(server: RedisServer, count: int) -> AsyncIterator[Shop]:
    for _ in range(count):
        redis: Redis = Redis.from_url(server.url, decode_responses=True)
        yield Shop(Cell(redis))


async def test_however_many_hear_of_it_at_once_it_is_booked_once(
    shop: Shop, redis_server: RedisServer
) -> None:
    shops = [each async for each in clients(redis_server, 16)]
    event = paid()
    outcomes = await asyncio.gather(*(each.apply(event) for each in shops))
    assert sorted(outcomes) == [[Outcome.DUPLICATE]] * 15 + [[Outcome.GRANTED]]

    # All that can be said, by everybody in an order of their own.
    more = [refunded(100), refunded(200), disputed("needs_response", amount=100)]
    more += [disputed("won", amount=100), paid(), disputed("lost", id="dp_2", amount=40)]
    orders = itertools.islice(itertools.permutations(more), 0, 720, 45)
    await asyncio.gather(*(each.apply(*order) for each, order in zip(shops, orders, strict=True)))
    assert await shop.has() == (40_000 - 20_000 - 4_000, 0)
    for each in shops:
        await each.cell.redis.aclose()


Deed = Callable[[Shop], Awaitable[object]]


async def hears_of_all(shop: Shop) -> None:
    """As an ingress whose every webhook is sent again until it is answered."""
    for event in STORY:
        await shop.payments.apply("stripe", event)


async def opens(shop: Shop) -> None:
    purchase = replace(PURCHASE, cell_id=await shop.payments.cell_id())
    await shop.payments.opened("stripe", Checkout("cs_test_1", "https://x"), purchase)
    assert await shop.payments.checkout("cs_test_1")


STORY: Sequence[Event] = [
    refunded(40),
    paid(),
    disputed("needs_response"),
    refunded(100),
    disputed("won"),
]


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
@pytest.mark.parametrize("deed", [hears_of_all, opens], ids=lambda deed: deed.__name__)
async def test_after_any_command_nothing_is_half_done_and_doing_it_again_does_it(
    shop: Shop, redis_server: RedisServer, deed: Deed, heard: bool
) -> None:
    for commands in itertools.count(1):
        await shop.cell.redis.flushall()
        await shop.cell.check_schema()
        if deed is hears_of_all:
            await shop.cell.redis.set(shop.cell.key("cell_id"), "cell_a")
        await shop.cell.redis.script_flush()
        async with dying_after(redis_server, commands, heard=heard) as dying:
            with suppress(ServiceUnavailable):
                await deed(Shop(Cell(dying.redis)))
        spendable, debt = await shop.has()
        assert spendable in (0, 30_000, 36_000)
        assert debt == 0
        name = await shop.cell.redis.get(shop.cell.key("cell_id"))
        await deed(shop)
        if deed is hears_of_all:
            assert await shop.has() == (30_000, 0)
            assert [kind for kind, _ in await shop.entries()].count(EntryType.GRANT) == 1
        elif name:
            assert await shop.payments.cell_id() == name
        if not dying.died:
            break
    assert commands > 4


async def test_without_redis_nothing_is_done_and_that_is_said(shop: Shop) -> None:
    gone = Shop(Cell(Redis(port=1, retry=Retry(NoBackoff(), 0), decode_responses=True)))
    calls: list[Callable[[], Awaitable[object]]] = [
        gone.payments.cell_id,
        lambda: gone.payments.checkout("cs_test_1"),
        lambda: gone.payments.opened("stripe", Checkout("cs_test_1", "https://x"), PURCHASE),
        lambda: gone.payments.apply("stripe", paid()),
    ]
    for call in calls:
        with pytest.raises(ServiceUnavailable):
            await call()
