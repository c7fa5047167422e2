"""Events that come days late, when the credits have expired or nobody remembers the checkout."""

from __future__ import annotations

import pytest
import pytest_asyncio

from deployments.redis_server import RedisServer
from quota.ledger import EntryType
from quota.payments.provider import CheckoutPhase, Outcome
from serving.jobs import Cell
from tests import stripe_events as told
from tests.clock import Clock
from tests.payments import Shop, disputed, paid, refunded

pytestmark = pytest.mark.asyncio

DAY_S = 24 * 3600


@pytest.fixture(scope="session")
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    """The server under test is one whose clock can be moved."""
    return moved_redis_server[0]


@pytest_asyncio.fixture
async def shop(cell: Cell, clock: Clock) -> Shop:
    await cell.redis.set(cell.key("cell_id"), "cell_a")
    return Shop(cell)


async def expired(shop: Shop) -> int:
    found = await shop.cell.redis.hget(shop.cell.key("ledger", "accounts"), "expired")
    return int(found or 0)


async def test_credits_last_from_the_day_they_are_granted(shop: Shop, clock: Clock) -> None:
    """Not from the day of the payment: whoever pays is not to lose by a slow webhook."""
    clock.jump(20 * DAY_S)
    await shop.apply(paid(metadata=told.carried(days=2)))
    clock.jump(DAY_S)
    assert await shop.has() == (40_000, 0)
    clock.jump(DAY_S + 1)
    await shop.ledger.expire()
    assert await shop.has() == (0, 0)


async def test_a_refund_of_expired_credits_takes_nothing_that_is_not_there(
    shop: Shop, clock: Clock
) -> None:
    await shop.apply(paid(metadata=told.carried(days=2)))
    await shop.spend("ann", 15_000)
    clock.jump(3 * DAY_S)
    await shop.ledger.expire()
    assert await expired(shop) == 25_000

    # Half of it: no more than had expired. All of it: what was spent is owed.
    assert await shop.apply(refunded(200)) == [Outcome.REVERSED]
    assert (await shop.has(), await expired(shop)) == ((0, 0), 5_000)
    await shop.apply(refunded(400))
    assert (await shop.has(), await expired(shop)) == ((0, 15_000), 0)


async def test_what_a_won_dispute_gives_back_too_late_expires_at_once(
    shop: Shop, clock: Clock
) -> None:
    await shop.apply(paid(metadata=told.carried(days=2)), disputed("needs_response"))
    clock.jump(90 * DAY_S)
    assert await shop.apply(disputed("won")) == [Outcome.RESTORED]
    assert await shop.has() == (0, 0)
    assert await expired(shop) == 40_000
    assert [kind for kind, _ in await shop.entries()][-2:] == [
        EntryType.RESTORATION,
        EntryType.EXPIRY,
    ]


async def test_a_payment_is_known_for_ever_and_a_checkout_for_a_month(
    shop: Shop, clock: Clock
) -> None:
    event = paid()
    await shop.apply(event)
    clock.jump(29 * DAY_S)
    found = await shop.payments.checkout("cs_test_1")
    assert found is not None
    assert found.state is CheckoutPhase.PAID
    clock.jump(800 * DAY_S)
    assert await shop.payments.checkout("cs_test_1") is None
    assert await shop.apply(event, paid()) == [Outcome.DUPLICATE, Outcome.NOTED]
    assert [kind for kind, _ in await shop.entries()].count(EntryType.GRANT) == 1


async def test_what_was_said_of_a_payment_that_never_came_is_forgotten(
    shop: Shop, clock: Clock
) -> None:
    await shop.apply(refunded(400))
    clock.jump(89 * DAY_S)
    assert await shop.cell.redis.exists(shop.cell.key("payment", "stripe", "pi_1"))
    clock.jump(2 * DAY_S)
    assert not await shop.cell.redis.exists(shop.cell.key("payment", "stripe", "pi_1"))
