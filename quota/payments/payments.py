"""What providers say of payments, into the ledger: each once, in any order, after any delay.

The facts about a payment only ever grow: the most that was refunded, how far each dispute has
come, whether it was paid. So they may be merged in any order and as often as one likes, and always
come to the same; ``lua/_payments.lua`` says how much of the grant is withdrawn then. A grant needs
the event alone: what was remembered of a checkout is for its owner to look at.
"""

from __future__ import annotations

import secrets

from quota.ledger import check_names, refusal
from quota.payments.provider import (
    Applied,
    Checkout,
    CheckoutPhase,
    CheckoutState,
    DisputePhase,
    Event,
    Purchase,
)
from quota.redis_ledger import Runner

PHASES = list(CheckoutPhase)
DISPUTE_PHASES = list(DisputePhase)


class Payments:
    """The payments of one cell; :class:`ServiceUnavailable` if its Redis is away, with nothing
    done then. Each method may be repeated."""

    def __init__(self, cell: Runner) -> None:
        self.cell = cell

    async def cell_id(self) -> str:
        """Tells this cell's payments from those of another one on the same account: made once,
        and kept for as long as the ledger is."""
        key = self.cell.key("cell_id")
        async with self.cell.answers():
            await self.cell.redis.set(key, f"cell_{secrets.token_hex(12)}", nx=True)
            return str(await self.cell.redis.get(key))

    async def opened(self, provider: str, checkout: Checkout, purchase: Purchase) -> None:
        """Remember a checkout for its owner, for 30 days."""
        check_names(user=purchase.user, checkout=checkout.id)
        await self.cell.run(
            "checkout",
            checkout.id,
            PHASES.index(CheckoutPhase.OPEN),
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
            state=PHASES[int(found["phase"])],
            grant=found.get("grant"),
        )

    async def apply(self, provider: str, event: Event) -> Applied:
        """Note what a verified event says, and let the ledger follow, in one step.

        :class:`LedgerRefused` where the ledger cannot book it; nothing is noted then.
        """
        raise refusal("unknown", event.id)
