"""What a webhook says: nothing at all unless the provider said it, just now, in these bytes."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.payments.provider import (
    CheckoutPhase,
    Dispute,
    DisputePhase,
    Event,
    Money,
    Provider,
    Terms,
)
from quota.payments.stripe_checkout import StripeCheckout
from serving.plan.errors import InvalidRequest
from tests import stripe_events as told
from tests.stripe_events import SECRET, sign

COMPLETED = "checkout.session.completed"


@pytest.fixture(scope="module")
def stripe() -> StripeCheckout:
    return StripeCheckout("sk_test_x", [SECRET])


def read(provider: Provider, body: bytes) -> Event | None:
    return provider.read(body, sign(body))


def refused(provider: Provider, body: bytes, signature: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        provider.read(body, signature)
    assert caught.value.code == "invalid_signature"
    assert SECRET not in caught.value.message


# Who said it


def test_not_one_byte_may_differ(stripe: StripeCheckout) -> None:
    body = told.event(COMPLETED, told.session())
    signature = sign(body)
    assert stripe.read(body, signature)
    for place in range(len(body)):
        for bit in (1, 0x80):
            refused(
                stripe, body[:place] + bytes([body[place] ^ bit]) + body[place + 1 :], signature
            )


def test_what_is_cut_off_or_added_to_says_nothing(stripe: StripeCheckout) -> None:
    body = told.event(COMPLETED, told.session())
    signature = sign(body)
    for length in range(len(body)):
        refused(stripe, body[:length], signature)
    refused(stripe, body + b" ", signature)
    refused(stripe, b"\xef\xbb\xbf" + body, signature)
    # What it means is the same; what was signed is not.
    refused(stripe, json.dumps(json.loads(body)).encode(), signature)


def test_not_one_character_of_the_signature_may_differ(stripe: StripeCheckout) -> None:
    body = told.event(COMPLETED, told.session())
    signature = sign(body)
    for place, was in enumerate(signature):
        other = "1" if was != "1" else "2"
        refused(stripe, body, signature[:place] + other + signature[place + 1 :])


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        "t=1",
        "v1=",
        "nonsense",
        "t=,v1=",
        "t=x,v1=00",
        "t=" + "9" * 5000 + ",v1=00",
        "t=1,v1=ünlesbar",
        "t=1,v1=\udcff",
        "," * 5000,
    ],
)
def test_no_signature_is_none(stripe: StripeCheckout, signature: str | None) -> None:
    refused(stripe, told.event(COMPLETED, told.session()), signature)


@given(st.binary(max_size=300), st.text(max_size=100))
def test_nothing_but_a_signature_is_one(body: bytes, signature: str) -> None:
    refused(StripeCheckout("sk_test_x", [SECRET]), body, signature)


def test_another_secret_or_scheme_is_none(stripe: StripeCheckout) -> None:
    body = told.event(COMPLETED, told.session())
    for secret in ("whsec_other", SECRET + " ", SECRET[:-1], SECRET.removeprefix("whsec_")):
        refused(stripe, body, sign(body, secret))
    refused(stripe, body, sign(body, scheme="v0"))


def test_what_was_said_five_minutes_ago_is_stale(stripe: StripeCheckout) -> None:
    body = told.event(COMPLETED, told.session())
    now_s = int(time.time())
    refused(stripe, body, sign(body, at_s=now_s - 302))
    assert stripe.read(body, sign(body, at_s=now_s - 290))
    # A fresher time in front of the old signature, too.
    old = sign(body, at_s=now_s - 302)
    refused(stripe, body, f"t={now_s},{old.partition(',')[2]}")


def test_while_a_secret_replaces_another_either_will_do() -> None:
    both = StripeCheckout("sk_test_x", ["whsec_old", "whsec_new"])
    body = told.event(COMPLETED, told.session())
    for secret in ("whsec_old", "whsec_new"):
        assert both.read(body, sign(body, secret))
    # Stripe itself signs with both then.
    assert both.read(
        body, f"{sign(body, 'whsec_gone')},{sign(body, 'whsec_new').partition(',')[2]}"
    )
    refused(both, body, sign(body))


# What it says

TERMS = Terms(user="ann", pack="extra-10", credits=40_000, expires_days=365)


def said(kind: str, about: dict[str, Any], **more: Any) -> Event:
    body = told.event(kind, about, **more)
    event = read(StripeCheckout("sk_test_x", [SECRET]), body)
    assert event is not None
    assert (event.id, event.type) == (json.loads(body)["id"], kind)
    return event


@pytest.mark.parametrize(
    ("kind", "status", "phase"),
    [
        (COMPLETED, "paid", CheckoutPhase.PAID),
        (COMPLETED, "unpaid", CheckoutPhase.PROCESSING),
        ("checkout.session.async_payment_succeeded", "paid", CheckoutPhase.PAID),
        ("checkout.session.async_payment_succeeded", "unpaid", CheckoutPhase.PROCESSING),
        ("checkout.session.async_payment_failed", "unpaid", CheckoutPhase.FAILED),
        ("checkout.session.expired", "unpaid", CheckoutPhase.EXPIRED),
    ],
)
def test_a_session_is_paid_where_its_payment_status_says_so(
    kind: str, status: str, phase: CheckoutPhase
) -> None:
    event = said(kind, told.session(kind, status))

    assert (event.checkout, event.phase, event.cell_id) == ("cs_test_1", phase, "cell_a")
    assert event.terms == TERMS
    assert event.paid == (Money(400, "usd") if status == "paid" else None)
    assert event.payment == (None if phase is CheckoutPhase.EXPIRED else "pi_1")
    assert (event.refunded, event.dispute) == (None, None)


def test_where_nothing_was_to_be_paid_the_session_is_the_payment() -> None:
    free = told.session(status="no_payment_required", payment_intent=None, amount_total=0)
    event = said(COMPLETED, free)
    assert (event.payment, event.paid) == ("cs_test_1", Money(0, "usd"))


def test_a_refund_says_all_that_was_refunded_so_far() -> None:
    event = said("charge.refunded", told.charge(150))
    assert (event.payment, event.cell_id) == ("pi_1", "cell_a")
    assert event.refunded == Money(150, "usd")
    assert (event.paid, event.terms, event.checkout, event.dispute) == (None,) * 4


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("warning_needs_response", DisputePhase.INQUIRY),
        ("warning_under_review", DisputePhase.INQUIRY),
        ("warning_closed", DisputePhase.WON),
        ("needs_response", DisputePhase.OPEN),
        ("under_review", DisputePhase.OPEN),
        ("appeal_under_review", DisputePhase.OPEN),
        ("won", DisputePhase.WON),
        ("lost", DisputePhase.LOST),
        ("prevented", DisputePhase.WON),
    ],
)
@pytest.mark.parametrize(
    "kind", ["created", "updated", "closed", "funds_withdrawn", "funds_reinstated"]
)
def test_a_dispute_is_as_its_status_says(kind: str, status: str, phase: DisputePhase) -> None:
    event = said(f"charge.dispute.{kind}", told.dispute(status, amount=250), created=1_790_000_000)
    assert event.dispute == Dispute("dp_1", phase, 1_790_000_000, Money(250, "usd"))
    assert (event.payment, event.cell_id) == ("pi_1", None)
    assert (event.paid, event.terms, event.checkout, event.refunded) == (None,) * 4


def test_what_the_library_does_not_know_of_an_event_does_not_matter() -> None:
    about = told.session() | {"new_field": {"deep": [1, 2]}}
    assert said(COMPLETED, about, api_version="2031-01-01.future", context="x").paid


# What does not concern us, or makes no sense


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("payment_intent.succeeded", {"id": "pi_1", "metadata": told.carried()}),
        ("customer.created", {"id": "cus_1"}),
        (COMPLETED, told.session(metadata={})),
        (COMPLETED, told.session(metadata=None)),
        (COMPLETED, told.session(metadata={"order": "7"})),
        ("charge.refunded", told.charge(150, metadata={})),
        ("charge.dispute.created", told.dispute("needs_response", payment_intent=None)),
    ],
)
def test_what_is_not_ours_is_nothing_and_not_worth_a_word(
    stripe: StripeCheckout, caplog: pytest.LogCaptureFixture, kind: str, about: dict[str, Any]
) -> None:
    assert read(stripe, told.event(kind, about)) is None
    assert caplog.records == []


def without(about: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key != name}


@pytest.mark.parametrize(
    ("kind", "about", "why"),
    [
        (COMPLETED, told.session(metadata=told.carried(user="ann smith")), "reelserve_user"),
        (COMPLETED, told.session(metadata=told.carried(user="ann\n")), "reelserve_user"),
        (COMPLETED, told.session(metadata=told.carried(user="x" * 201)), "reelserve_user"),
        (COMPLETED, told.session(metadata=told.carried(credits=0)), "reelserve_credits"),
        (COMPLETED, told.session(metadata=told.carried(credits=-5)), "reelserve_credits"),
        (COMPLETED, told.session(metadata=told.carried(credits="4.5")), "reelserve_credits"),
        (COMPLETED, told.session(metadata=told.carried(credits="")), "reelserve_credits"),
        (COMPLETED, told.session(metadata=told.carried(credits=2**53)), "reelserve_credits"),
        (COMPLETED, told.session(metadata=told.carried(days=0)), "reelserve_days"),
        (COMPLETED, told.session(metadata=told.carried(days=10**9)), "reelserve_days"),
        (COMPLETED, told.session(metadata={"reelserve_cell": "cell_a"}), "reelserve_user"),
        (COMPLETED, told.session(metadata=["reelserve_cell"]), "metadata"),
        (COMPLETED, told.session(status="perhaps"), "payment_status"),
        (COMPLETED, told.session(amount_total="400"), "amount_total"),
        (COMPLETED, told.session(amount_total=-1), "amount_total"),
        (COMPLETED, told.session(currency="US Dollar"), "currency"),
        (COMPLETED, told.session(payment_intent=None), "there is no payment intent"),
        (COMPLETED, without(told.session(), "payment_intent"), "payment_intent"),
        (COMPLETED, told.session(payment_intent="pi 1"), "payment_intent"),
        ("charge.refunded", told.charge(True), "amount_refunded"),
        ("charge.refunded", without(told.charge(1), "amount_refunded"), "amount_refunded"),
        ("charge.refunded", told.charge(1, payment_intent=None), "payment_intent"),
        ("charge.dispute.created", told.dispute("undecided"), "nobody knows 'undecided'"),
        ("charge.dispute.created", told.dispute("lost", amount=2**53), "amount"),
    ],
)
def test_what_makes_no_sense_does_nothing_and_is_in_the_log(
    stripe: StripeCheckout,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    about: dict[str, Any],
    why: str,
) -> None:
    body = told.event(kind, about)
    assert read(stripe, body) is None
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.ERROR
    assert message.startswith(f"{json.loads(body)['id']} ({kind}) makes no sense")
    assert why in message
    assert "ann@example.com" not in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"id": "evt_1"}',
        b"[" * 100_000,
        b'{"id": NaN}',
        b"\xff",
        b"\x00",
    ],
)
def test_what_is_signed_and_no_event_does_nothing(
    stripe: StripeCheckout, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    if body == b"\xff":
        refused(stripe, body, sign(body))
    else:
        assert read(stripe, body) is None
        assert "no event, and nothing is done" in caplog.text


def test_with_a_live_key_a_test_card_buys_nothing(caplog: pytest.LogCaptureFixture) -> None:
    live = StripeCheckout("rk_live_x", [SECRET])
    assert read(live, told.event(COMPLETED, told.session())) is None
    assert "is a test, and nothing is done" in caplog.text
    assert read(live, told.event(COMPLETED, told.session(), livemode=True))
