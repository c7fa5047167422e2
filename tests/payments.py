"""Events of payments as a cell hears them, and what they do to its ledger."""

from __future__ import annotations

from typing import Any

from quota.ledger import EntryType
from quota.payments.payments import Payments
from quota.payments.provider import Event, Outcome, Purchase
from quota.payments.stripe_checkout import StripeCheckout
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import Cell
from tests import stripe_events as told
from tests.stripe_events import SECRET, sign

STRIPE = StripeCheckout("sk_test_x", [SECRET])
GRANT = "stripe:pi_1"
DAY_MS = 24 * 3600 * 1000
PURCHASE = Purchase("cell_a", "ann", "extra-10", "10 extra", 40_000, 365, 400, "usd")
PAID = "checkout.session.completed"
SUCCEEDED = "checkout.session.async_payment_succeeded"


def read(kind: str, about: dict[str, Any], **more: Any) -> Event:
    body = told.event(kind, about, **more)
    event = STRIPE.read(body, sign(body))
    assert event is not None
    return event


def paid(**more: Any) -> Event:
    return read(PAID, told.session(**more))


def refunded(minor: int, **more: Any) -> Event:
    return read("charge.refunded", told.charge(minor, **more))


def disputed(status: str, *, at_s: int = 1_790_000_000, **more: Any) -> Event:
    return read("charge.dispute.updated", told.dispute(status, **more), created=at_s)


class Shop:
    """A cell's payments and its ledger, under a known name."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.payments, self.ledger = Payments(cell), RedisLedger(cell)

    async def apply(self, *events: Event) -> list[Outcome]:
        return [(await self.payments.apply("stripe", event)).outcome for event in events]

    async def spend(self, user: str, amount: int, job: str = "video_1") -> None:
        await self.ledger.hold(user, job, amount)
        await self.ledger.capture(job, amount)

    async def has(self, user: str = "ann") -> tuple[int, int]:
        """What may be spent, and what is owed; and the books hold."""
        assert (await verify(self.cell)).differences == []
        balance = await self.ledger.balance(user)
        return balance.spendable, balance.debt

    async def entries(self) -> list[tuple[EntryType, int]]:
        """What each entry gave, or took."""
        found = await self.ledger.entries()
        return [(entry.type, -entry.postings.get("cell:issued", 0)) for entry in found]
