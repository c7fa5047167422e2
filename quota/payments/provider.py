"""A payment provider: the plain values it deals in, and what each one does.

What a provider says is an :class:`Event`; the facts in it are of a kind that may be merged in any
order, any number of times (:mod:`quota.payments.payments`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True)
class Purchase:
    """What a user is about to buy. ``credits`` in milli-credits; ``price_minor`` in the minor unit
    of the ``currency`` (cents), an ISO 4217 code in lower case. ``cell_id``: whose user it is."""

    cell_id: str
    user: str
    pack: str
    title: str
    credits: int
    expires_days: int | None
    price_minor: int
    currency: str


@dataclass(frozen=True)
class Checkout:
    """A page of the provider where a purchase is paid. The id is the provider's."""

    id: str
    url: str


class CheckoutPhase(StrEnum):
    """How far a checkout has come. The later in this order stays: whatever was paid is paid."""

    OPEN = "open"
    PROCESSING = "processing"
    EXPIRED = "expired"
    FAILED = "failed"
    PAID = "paid"


@dataclass(frozen=True)
class CheckoutState:
    """A checkout as its owner sees it. ``credits`` in milli-credits; ``grant`` is the ref of the
    grant in the ledger, once there is one."""

    id: str
    user: str
    pack: str
    credits: int
    state: CheckoutPhase
    grant: str | None


@dataclass(frozen=True)
class Money:
    """An amount in the minor unit of a currency."""

    minor: int
    currency: str


class DisputePhase(StrEnum):
    """How far a dispute has come. One that was closed, won or lost, does not open again; it may be
    closed again, after an appeal. An inquiry has taken no money yet."""

    INQUIRY = "inquiry"
    OPEN = "open"
    WON = "won"
    LOST = "lost"


@dataclass(frozen=True)
class Dispute:
    """A payment that its payer wants back by way of the bank, as of ``at_s`` (Unix time). Won: by
    us."""

    id: str
    phase: DisputePhase
    at_s: int
    amount: Money


@dataclass(frozen=True)
class Terms:
    """What is granted for a payment, as the provider kept it for us. ``credits`` in
    milli-credits."""

    user: str
    pack: str
    credits: int
    expires_days: int | None


@dataclass(frozen=True)
class Event:
    """What a provider says, verified. The facts it does not speak of are None.

    ``payment``: the provider's id of the payment; None while there is none. ``cell_id`` is None
    where the provider does not say whose payment it is (a dispute). ``refunded``: all that was
    refunded so far, of what was ``charged``. ``paid`` and ``phase``, which is the ``checkout``'s,
    come with ``terms``.
    """

    id: str
    type: str
    cell_id: str | None
    payment: str | None
    checkout: str | None = None
    phase: CheckoutPhase | None = None
    terms: Terms | None = None
    paid: Money | None = None
    refunded: Money | None = None
    charged: Money | None = None
    dispute: Dispute | None = None


class Outcome(StrEnum):
    """What an event led to. ``IGNORED``: it is of another cell."""

    GRANTED = "granted"
    REVERSED = "reversed"
    RESTORED = "restored"
    NOTED = "noted"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"


@dataclass(frozen=True)
class Applied:
    """The outcome, and the ledger's ``entries`` that it made, in their order."""

    outcome: Outcome
    entries: tuple[str, ...] = ()


class Provider(Protocol):
    """Takes money for us. ``name`` is part of the address of its webhooks and of grants' refs."""

    name: str

    async def checkout(
        self, purchase: Purchase, *, success_url: str, cancel_url: str, idempotency_key: str
    ) -> Checkout:
        """Open a page where this is paid. The same key again gives the same page.

        :class:`ServiceUnavailable` if the provider is away, or will not do it now.
        """
        ...

    def read(self, body: bytes, signature: str | None) -> Event | None:
        """What a webhook says, verified on its raw bytes. None: nothing that concerns us.

        :class:`InvalidRequest` with code ``invalid_signature`` if the provider did not say it, or
        not just now.
        """
        ...

    async def aclose(self) -> None: ...
