"""What providers say of payments, into the ledger: each once, in any order, after any delay.

The facts about a payment only ever grow: the most that was refunded, how far each dispute has
come, whether it was paid. So they may be merged in any order and as often as one likes, and always
come to the same; ``lua/_payments.lua`` says how much of the grant is withdrawn then. A grant needs
the event alone: what was remembered of a checkout is for its owner to look at.
"""

from __future__ import annotations

import json
import logging
import secrets

from quota.ledger import PRIORITIES, Kind, check_amount, check_names, refusal
from quota.payments.provider import (
    Applied,
    Checkout,
    CheckoutPhase,
    CheckoutState,
    Event,
    Outcome,
    Purchase,
)
from quota.redis_ledger import Runner

log = logging.getLogger(__name__)


class Payments:
    """The payments of one cell; :class:`ServiceUnavailable` if its Redis is away, with nothing
    done then. Each method may be repeated."""

    def __init__(self, cell: Runner) -> None:
        self.cell = cell

    async def cell_id(self) -> str:
        """Tells this cell's payments from those of others on the same account: made once, and kept
        for as long as the ledger is."""
        key = self.cell.key("cell_id")
        async with self.cell.answers():
            if found := await self.cell.redis.get(key):
                return str(found)
            await self.cell.redis.set(key, f"cell_{secrets.token_hex(12)}", nx=True)
            return str(await self.cell.redis.get(key))

    async def opened(self, provider: str, checkout: Checkout, purchase: Purchase) -> None:
        """Remember a checkout for its owner, for 30 days."""
        check_names(user=purchase.user, checkout=checkout.id)
        check_amount(purchase.credits)
        await self.cell.run(
            "note_checkout",
            checkout.id,
            CheckoutPhase.OPEN,
            purchase.user,
            purchase.pack,
            purchase.credits,
            provider,
        )

    async def checkout(self, checkout_id: str) -> CheckoutState | None:
        """What became of a checkout; None if nothing is known of it, or not any more."""
        async with self.cell.answers():
            found = await self.cell.redis.hgetall(self.cell.key("checkout", checkout_id))
        if not found:
            return None
        return CheckoutState(
            id=checkout_id,
            user=found["user"],
            pack=found["pack"],
            credits=int(found["credits"]),
            state=CheckoutPhase(found["state"]),
            grant=found.get("grant"),
        )

    async def apply(self, provider: str, event: Event) -> Applied:
        """Note what a verified event says, and let the ledger follow, in one step.

        :class:`LedgerRefused` where the ledger cannot book it; nothing is noted then.
        """
        if event.cell_id is not None and event.cell_id != await self.cell_id():
            log.info("%s %s is of another cell, %s", provider, event.id, event.cell_id)
            return Applied(Outcome.IGNORED)
        outcome, *entries = await self.cell.run("apply_event", provider, _told(event))
        if outcome not in OUTCOMES:
            refused = refusal(outcome)
            log.error("%s %s cannot be booked: %s", provider, event.id, refused.message)
            raise refused
        log.info("%s %s (%s of %s): %s", provider, event.id, event.type, event.payment, outcome)
        return Applied(Outcome(outcome), tuple(entries))


OUTCOMES = frozenset(Outcome)


def _told(event: Event) -> str:
    """As ``lua/apply_event.lua`` has it: what is not said is left out, and all else is text."""
    told: dict[str, object] = {"id": event.id, "type": event.type, "payment": event.payment}
    if event.checkout is not None:
        told |= {"checkout": event.checkout, "state": event.phase}
    if terms := event.terms:
        told |= {"user": terms.user, "pack": terms.pack, "credits": terms.credits}
        told |= {"days": terms.expires_days, "priority": PRIORITIES[Kind.PURCHASE]}
    if event.paid:
        told |= {"paid": event.paid.minor, "currency": event.paid.currency}
    if event.refunded:
        told |= {"refunded": event.refunded.minor, "refunded_in": event.refunded.currency}
    if event.charged:
        told |= {"charged": event.charged.minor, "charged_in": event.charged.currency}
    if dispute := event.dispute:
        told |= {"dispute": dispute.id, "dispute_state": f"{dispute.phase} {dispute.at_s}"}
        told |= {"disputed": dispute.amount.minor, "disputed_in": dispute.amount.currency}
    return json.dumps({name: str(value) for name, value in told.items() if value is not None})
