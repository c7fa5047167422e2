"""A provider that takes no money, for one machine: its page stands on our own ingress, and what it
says is signed, sent and read as Stripe's is.

Its sessions are in Redis, so that every replica of the ingress knows them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from stripe import WebhookSignature

from quota.payments.provider import Checkout, Event, Purchase
from quota.payments.stripe_events import metadata, read_event, verify
from quota.redis_ledger import Runner
from serving.plan.errors import IdempotencyMismatch, NotFound

SESSION_KEPT_S = 30 * 24 * 3600


@dataclass(frozen=True)
class Session:
    """What the page shows, and where it leads to."""

    id: str
    purchase: Purchase
    success_url: str
    cancel_url: str


class Say(StrEnum):
    """What may become of a session."""

    COMPLETED = "completed"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    REFUNDED = "refunded"
    DISPUTE_OPENED = "dispute_opened"
    DISPUTE_WON = "dispute_won"
    DISPUTE_LOST = "dispute_lost"


SAID: Mapping[Say, tuple[str, str]] = {
    Say.COMPLETED: ("checkout.session.completed", "paid"),
    Say.PENDING: ("checkout.session.completed", "unpaid"),
    Say.SUCCEEDED: ("checkout.session.async_payment_succeeded", "paid"),
    Say.FAILED: ("checkout.session.async_payment_failed", "unpaid"),
    Say.EXPIRED: ("checkout.session.expired", "unpaid"),
    Say.REFUNDED: ("charge.refunded", ""),
    Say.DISPUTE_OPENED: ("charge.dispute.created", "needs_response"),
    Say.DISPUTE_WON: ("charge.dispute.closed", "won"),
    Say.DISPUTE_LOST: ("charge.dispute.closed", "lost"),
}
"""The type of the event, and the status in it."""


class Sandbox:
    """:class:`quota.payments.provider.Provider`. Whoever has its ``secret`` has free credits."""

    name = "sandbox"

    def __init__(self, cell: Runner, secret: str, public_url: str) -> None:
        self._cell = cell
        self._secret = secret
        self._public_url = public_url.rstrip("/")

    @property
    def webhook_url(self) -> str:
        """Where what it says is sent."""
        return f"{self._public_url}/v1/payments/{self.name}/webhook"

    async def checkout(
        self, purchase: Purchase, *, success_url: str, cancel_url: str, idempotency_key: str
    ) -> Checkout:
        """As the protocol says. The same key for something else is an
        :class:`IdempotencyMismatch`."""
        told = " ".join((purchase.cell_id, purchase.user, idempotency_key))
        session = f"cs_sandbox_{self._mac(told)}"
        made = json.dumps([asdict(purchase), success_url, cancel_url])
        async with self._cell.answers():
            await self._cell.redis.set(self._key(session), made, nx=True, ex=SESSION_KEPT_S)
            found = await self._cell.redis.get(self._key(session))
        if found != made:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used for another purchase, or at another price. "
                "Use a new one."
            )
        return Checkout(session, f"{self._public_url}/sandbox/checkout/{session}")

    async def session(self, checkout_id: str) -> Session | None:
        """A checkout that was opened in the last 30 days. ``{CHECKOUT_SESSION_ID}`` in its
        addresses is its id, as at Stripe."""
        async with self._cell.answers():
            found = await self._cell.redis.get(self._key(checkout_id))
        if found is None:
            return None
        purchase, *urls = json.loads(found)
        filled = (url.replace("{CHECKOUT_SESSION_ID}", checkout_id) for url in urls)
        return Session(checkout_id, Purchase(**purchase), *filled)

    async def webhook(
        self, checkout_id: str, say: Say, *, minor: int | None = None
    ) -> tuple[bytes, str]:
        """The body and the signature of the webhook that says so. ``minor``: what was refunded so
        far, or is in dispute; all of it if absent. :class:`NotFound`: no such checkout."""
        session = await self.session(checkout_id)
        if session is None:
            raise NotFound("There is no such checkout, or not any more.")
        event, status = SAID[say]
        price = session.purchase.price_minor
        about = _about(session, event, status, price if minor is None else minor)
        body = json.dumps(
            {
                "id": f"evt_sandbox_{secrets.token_hex(12)}",
                "object": "event",
                "type": event,
                "created": int(time.time()),
                "livemode": False,
                "data": {"object": about},
            }
        )
        return body.encode(), WebhookSignature.generate_signature_header(body, self._secret)

    def read(self, body: bytes, signature: str | None) -> Event | None:
        verify(body, signature, [self._secret])
        return read_event(body)

    async def aclose(self) -> None:
        """The cell is not ours to close."""

    def _key(self, session: str) -> str:
        return self._cell.key("sandbox", session)

    def _mac(self, text: str) -> str:
        """Nobody guesses a session's address."""
        return hmac.new(self._secret.encode(), text.encode(), hashlib.sha256).hexdigest()[:32]


def _about(session: Session, event: str, status: str, minor: int) -> dict[str, Any]:
    """The object of an event, as far as it is Stripe's."""
    purchase, number = session.purchase, session.id.removeprefix("cs_")
    common = {
        "currency": purchase.currency,
        "payment_intent": f"pi_{number}",
        "metadata": metadata(purchase),
    }
    if event.startswith("checkout.session."):
        return common | {
            "id": session.id,
            "object": "checkout.session",
            "mode": "payment",
            "payment_status": status,
            "amount_total": purchase.price_minor,
            "client_reference_id": purchase.user,
        }
    if event == "charge.refunded":
        return common | {
            "id": f"ch_{number}",
            "object": "charge",
            "amount": purchase.price_minor,
            "amount_refunded": minor,
            "refunded": minor == purchase.price_minor,
        }
    return common | {
        "id": f"dp_{number}",
        "object": "dispute",
        "charge": f"ch_{number}",
        "amount": minor,
        "status": status,
        "metadata": {},
    }
