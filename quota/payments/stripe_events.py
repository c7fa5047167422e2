"""Stripe's events: their signature, and what they say. The sandbox speaks the same language.

A session and a charge carry what is granted for them (:func:`metadata`): a charge has its payment
intent's metadata (https://support.stripe.com/questions/how-metadata-works-with-related-objects). A
dispute has none, so whose it is comes from its payment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from stripe import SignatureVerificationError, WebhookSignature

from quota.ledger import AMOUNT_MAX, NAME
from quota.packs import DAYS_MAX
from quota.payments.provider import (
    CheckoutPhase,
    Dispute,
    DisputePhase,
    Event,
    Money,
    Purchase,
    Terms,
)
from serving.plan.errors import InvalidRequest

log = logging.getLogger(__name__)

TOLERANCE_S = 300
"""Stripe signs each attempt anew, so what is older was kept back by somebody."""

Id = Annotated[str, Field(pattern=r"^[!-~]{1,150}$")]
"""With a provider's name and a number, still a ref for the ledger."""
Minor = Annotated[int, Field(strict=True, ge=0, le=AMOUNT_MAX)]
Currency = Annotated[str, Field(pattern=r"^[a-z]{3}$")]


class _Metadata(BaseModel):
    """All of them are text at Stripe."""

    reelserve_cell: Id
    reelserve_user: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    reelserve_pack: Id
    reelserve_credits: Annotated[int, Field(ge=1, le=AMOUNT_MAX)]
    reelserve_days: Annotated[int, Field(ge=1, le=DAYS_MAX)] | None = None

    @property
    def terms(self) -> Terms:
        return Terms(
            self.reelserve_user, self.reelserve_pack, self.reelserve_credits, self.reelserve_days
        )


def metadata(purchase: Purchase) -> dict[str, str]:
    """What a session and its payment intent carry, so that a grant needs nothing but the event."""
    told = {
        "reelserve_cell": purchase.cell_id,
        "reelserve_user": purchase.user,
        "reelserve_pack": purchase.pack,
        "reelserve_credits": str(purchase.credits),
    }
    if purchase.expires_days is not None:
        told["reelserve_days"] = str(purchase.expires_days)
    return told


class _Session(BaseModel):
    id: Id
    payment_intent: Id | None
    payment_status: Literal["paid", "unpaid", "no_payment_required"]
    amount_total: Minor
    currency: Currency
    metadata: _Metadata


class _Charge(BaseModel):
    payment_intent: Id
    amount: Minor
    amount_refunded: Minor
    currency: Currency
    metadata: _Metadata


class _Dispute(BaseModel):
    id: Id
    payment_intent: Id
    status: str
    amount: Minor
    currency: Currency


class _Data(BaseModel):
    object: dict[str, Any]


class _Event(BaseModel):
    id: Id
    type: str
    created: Annotated[int, Field(ge=0, le=10**11)]
    livemode: bool
    data: _Data


def verify(body: bytes, signature: str | None, secrets: Iterable[str]) -> None:
    """Pass when one of these secrets signed these bytes within the last five minutes.

    :class:`InvalidRequest` with code ``invalid_signature`` if not.
    """
    for secret in secrets:
        try:
            WebhookSignature.verify_header(body, signature, secret, TOLERANCE_S)
        except (SignatureVerificationError, ValueError, TypeError):  # not text, or not ASCII
            continue
        return
    raise InvalidRequest(
        "The signature is not one of ours, or older than 5 minutes: check the webhook's secret, "
        "and the clock.",
        code="invalid_signature",
    )


def read_event(body: bytes, *, live: bool = False) -> Event | None:
    """What a verified event says. None if that does not concern us, or makes no sense.

    ``live``: what was paid with Stripe's test cards does not count.
    """
    try:
        raw = _Event.model_validate_json(body)
    except ValidationError as error:
        log.error("A signed webhook is no event, and nothing is done: %s", _told(error))
        return None
    read = READERS.get(raw.type)
    if read is None:
        return None
    if live and not raw.livemode:
        log.error("%s (%s) is a test, and nothing is done: the key is live", raw.id, raw.type)
        return None
    try:
        return read(raw)
    except (ValueError, TypeError) as error:
        log.error("%s (%s) makes no sense, and nothing is done: %s", raw.id, raw.type, _told(error))
        return None


def _session(raw: _Event) -> Event | None:
    if _not_ours(raw):
        return None
    session = _Session.model_validate(raw.data.object)
    paid = session.payment_status != "unpaid"
    phase = CheckoutPhase.PAID if paid else UNPAID[raw.type]
    payment = session.payment_intent
    if payment is None and session.payment_status == "no_payment_required":
        payment = session.id
    if payment is None and paid:
        raise ValueError("it is paid, and there is no payment intent")
    return Event(
        id=raw.id,
        type=raw.type,
        cell_id=session.metadata.reelserve_cell,
        payment=payment,
        checkout=session.id,
        phase=phase,
        terms=session.metadata.terms,
        paid=Money(session.amount_total, session.currency) if paid else None,
    )


def _refund(raw: _Event) -> Event | None:
    if _not_ours(raw):
        return None
    charge = _Charge.model_validate(raw.data.object)
    return Event(
        id=raw.id,
        type=raw.type,
        cell_id=charge.metadata.reelserve_cell,
        payment=charge.payment_intent,
        refunded=Money(charge.amount_refunded, charge.currency),
        charged=Money(charge.amount, charge.currency),
    )


def _dispute(raw: _Event) -> Event | None:
    if raw.data.object.get("payment_intent") is None:
        return None
    dispute = _Dispute.model_validate(raw.data.object)
    phase = DISPUTES.get(dispute.status)
    if phase is None:
        raise ValueError(f"status: nobody knows '{dispute.status}'")
    return Event(
        id=raw.id,
        type=raw.type,
        cell_id=None,
        payment=dispute.payment_intent,
        dispute=Dispute(dispute.id, phase, raw.created, Money(dispute.amount, dispute.currency)),
    )


UNPAID: Mapping[str, CheckoutPhase] = {
    "checkout.session.completed": CheckoutPhase.PROCESSING,
    "checkout.session.async_payment_succeeded": CheckoutPhase.PROCESSING,
    "checkout.session.async_payment_failed": CheckoutPhase.FAILED,
    "checkout.session.expired": CheckoutPhase.EXPIRED,
}
"""How far a checkout has come that is not paid: only its payment status says that it is."""

READERS = {
    **dict.fromkeys(UNPAID, _session),
    "charge.refunded": _refund,
    **dict.fromkeys(
        (
            "charge.dispute.created",
            "charge.dispute.updated",
            "charge.dispute.closed",
            "charge.dispute.funds_withdrawn",
            "charge.dispute.funds_reinstated",
        ),
        _dispute,
    ),
}

DISPUTES: Mapping[str, DisputePhase] = {
    "warning_needs_response": DisputePhase.INQUIRY,
    "warning_under_review": DisputePhase.INQUIRY,
    "warning_closed": DisputePhase.WON,
    "needs_response": DisputePhase.OPEN,
    "under_review": DisputePhase.OPEN,
    "appeal_needs_response": DisputePhase.OPEN,
    "appeal_under_review": DisputePhase.OPEN,
    "won": DisputePhase.WON,
    "lost": DisputePhase.LOST,
    # Whatever the payer got for it is a refund, and told as one.
    "prevented": DisputePhase.WON,
}


def _not_ours(raw: _Event) -> bool:
    """Whether it carries nothing of ours: others use the account, too."""
    return "reelserve_cell" not in (raw.data.object.get("metadata") or {})


def _told(error: Exception) -> str:
    """Which fields are wrong, and why; not what they hold."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()
    )
