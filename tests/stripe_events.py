"""Webhooks as Stripe sends them, signed by hand.

https://docs.stripe.com/api/events, https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import time
from typing import Any

SECRET = "whsec_" + "9f8E7d6C" * 4
numbers = itertools.count(1)


def carried(
    cell: str = "cell_a",
    user: str = "ann",
    pack: str = "extra-10",
    credits: int | str = 40_000,
    days: int | None = 365,
) -> dict[str, str]:
    """The metadata of a session, of its payment intent, and so of its charge."""
    told = {
        "reelserve_cell": cell,
        "reelserve_user": user,
        "reelserve_pack": pack,
        "reelserve_credits": str(credits),
    }
    return told if days is None else told | {"reelserve_days": str(days)}


def event(kind: str, about: dict[str, Any], *, created: int | None = None, **more: Any) -> bytes:
    told = {
        "id": f"evt_{next(numbers):024d}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": int(time.time()) if created is None else created,
        "data": {"object": about},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
        **more,
    }
    return json.dumps(told, indent=2).encode()


def session(
    kind: str = "checkout.session.completed",
    status: str = "paid",
    *,
    number: str = "1",
    **more: Any,
) -> dict[str, Any]:
    """``kind``, in short: what the session of such an event looks like."""
    open_ = kind == "checkout.session.expired"
    return {
        "id": f"cs_test_{number}",
        "object": "checkout.session",
        "amount_subtotal": 400,
        "amount_total": 400,
        "client_reference_id": "ann",
        "created": 1_790_000_000,
        "currency": "usd",
        "customer": None,
        "customer_details": None if open_ else {"email": "ann@example.com", "name": "Ann"},
        "expires_at": 1_790_086_400,
        "livemode": False,
        "metadata": carried(),
        "mode": "payment",
        "payment_intent": None if open_ else f"pi_{number}",
        "payment_method_types": ["card"],
        "payment_status": status,
        "status": "expired" if open_ else "complete",
        "success_url": "https://example.com/done",
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "url": None,
        **more,
    }


def charge(refunded: int, *, number: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "id": f"ch_{number}",
        "object": "charge",
        "amount": 400,
        "amount_captured": 400,
        "amount_refunded": refunded,
        "balance_transaction": f"txn_{number}",
        "captured": True,
        "created": 1_790_000_010,
        "currency": "usd",
        "disputed": False,
        "livemode": False,
        "metadata": carried(),
        "paid": True,
        "payment_intent": f"pi_{number}",
        "refunded": refunded == 400,
        "status": "succeeded",
        **more,
    }


def dispute(status: str, *, number: str = "1", amount: int = 400, **more: Any) -> dict[str, Any]:
    return {
        "id": f"dp_{number}",
        "object": "dispute",
        "amount": amount,
        "balance_transactions": [],
        "charge": f"ch_{number}",
        "created": 1_790_000_020,
        "currency": "usd",
        "evidence_details": {"due_by": 1_790_600_000, "has_evidence": False},
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": f"pi_{number}",
        "reason": "fraudulent",
        "status": status,
        **more,
    }


def sign(body: bytes, secret: str = SECRET, *, at_s: int | None = None, scheme: str = "v1") -> str:
    at_s = int(time.time()) if at_s is None else at_s
    mac = hmac.new(secret.encode(), str(at_s).encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={at_s},{scheme}={mac}"
