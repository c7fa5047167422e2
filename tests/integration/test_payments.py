"""Events of payments into the ledger: each once, in any order, by anybody, after any crash."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import pytest_asyncio

from quota.ledger import AMOUNT_MAX, EntryType, Kind
from quota.payments.payments import Payments
from quota.payments.provider import (
    Applied,
    Checkout,
    CheckoutPhase,
    CheckoutState,
    DisputePhase,
    Outcome,
)
from serving.jobs import Cell
from serving.jobs.cell import source
from serving.plan.errors import LedgerRefused
from tests import stripe_events as told
from tests.payments import (
    DAY_MS,
    GRANT,
    PAID,
    PURCHASE,
    SUCCEEDED,
    Shop,
    disputed,
    paid,
    read,
    refunded,
)

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def shop(cell: Cell) -> Shop:
    await cell.redis.set(cell.key("cell_id"), "cell_a")
    return Shop(cell)


# A grant


async def test_a_paid_session_is_granted_under_the_payments_name(shop: Shop) -> None:
    applied = await shop.payments.apply("stripe", paid())

    (entry,) = await shop.ledger.entries()
    assert applied == Applied(Outcome.GRANTED, (entry.id,))
    assert (entry.ref, entry.user, entry.kind) == (GRANT, "ann", Kind.PURCHASE)
    assert (entry.postings[f"grant:{GRANT}"], entry.priority) == (40_000, 100)
    assert entry.reason == "bought extra-10"
    assert entry.expires_ms == entry.at_ms + 365 * DAY_MS
    assert await shop.payments.checkout("cs_test_1") == CheckoutState(
        "cs_test_1", "ann", "extra-10", 40_000, CheckoutPhase.PAID, GRANT
    )


async def test_credits_without_days_never_expire(shop: Shop) -> None:
    await shop.apply(paid(metadata=told.carried(days=None)))
    (grant,) = (await shop.ledger.balance("ann")).grants
    assert grant.expires_ms is None


async def test_the_same_event_again_does_nothing(shop: Shop) -> None:
    event = paid()
    first, *others = await shop.apply(*[event] * 5)
    assert (first, set(others)) == (Outcome.GRANTED, {Outcome.DUPLICATE})
    assert await shop.has() == (40_000, 0)


async def test_another_event_of_the_same_payment_grants_nothing(shop: Shop) -> None:
    await shop.apply(paid())
    other = read(SUCCEEDED, told.session(SUCCEEDED))
    assert await shop.apply(other, paid()) == [Outcome.NOTED, Outcome.NOTED]
    assert await shop.entries() == [(EntryType.GRANT, 40_000)]


async def test_two_payments_are_two_grants(shop: Shop) -> None:
    await shop.apply(paid(), paid(number="2"))
    assert await shop.has() == (80_000, 0)


async def test_nothing_to_pay_is_granted_once_under_the_session(shop: Shop) -> None:
    free = paid(status="no_payment_required", payment_intent=None, amount_total=0)
    assert await shop.apply(free, free) == [Outcome.GRANTED, Outcome.DUPLICATE]
    (grant,) = (await shop.ledger.balance("ann")).grants
    assert grant.ref == "stripe:cs_test_1"


async def test_a_payment_of_another_cell_is_left_alone(shop: Shop) -> None:
    theirs = told.carried(cell="cell_b")
    before = await shop.cell.redis.keys()
    outcomes = await shop.apply(paid(metadata=theirs), refunded(400, metadata=theirs))
    assert outcomes == [Outcome.IGNORED, Outcome.IGNORED]
    assert await shop.cell.redis.keys() == before


async def test_a_cell_has_one_name_whoever_asks_first(cell: Cell) -> None:
    names = await asyncio.gather(*(Payments(cell).cell_id() for _ in range(20)))
    assert len(set(names)) == 1
    assert names[0].startswith("cell_")
    await cell.redis.flushall()
    assert await Payments(cell).cell_id() != names[0]


NOT_PAID = [
    read(PAID, told.session(status="unpaid")),
    read(SUCCEEDED, told.session(SUCCEEDED, "unpaid")),
    read("checkout.session.async_payment_failed", told.session(status="unpaid")),
    read("checkout.session.expired", told.session("checkout.session.expired", "unpaid")),
    refunded(150),
    disputed("needs_response"),
    disputed("won", at_s=1_790_000_001),
    disputed("lost", at_s=1_790_000_002),
]


async def test_nothing_is_granted_that_was_not_paid(shop: Shop) -> None:
    """Whatever else was said of the payment, in any selection."""
    for size in range(len(NOT_PAID) + 1):
        for events in itertools.combinations(NOT_PAID, size):
            await shop.cell.redis.delete(shop.cell.key("payment", "stripe", "pi_1"))
            assert set(await shop.apply(*events)) <= {Outcome.NOTED}
    assert await shop.ledger.entries() == []
    assert await shop.has() == (0, 0)


# Taking it back


async def test_a_refund_takes_its_share_and_a_second_one_only_what_is_new(shop: Shop) -> None:
    outcomes = await shop.apply(paid(), refunded(100), refunded(100), refunded(400))
    assert outcomes == [Outcome.GRANTED, Outcome.REVERSED, Outcome.NOTED, Outcome.REVERSED]
    assert await shop.entries() == [
        (EntryType.GRANT, 40_000),
        (EntryType.REVERSAL, -10_000),
        (EntryType.REVERSAL, -30_000),
    ]
    *_, entry = await shop.ledger.entries()
    assert (entry.of, entry.ref) == (GRANT, f"{GRANT}:2")
    assert entry.reason.startswith("charge.refunded evt_")


async def test_a_refund_that_comes_before_the_payment_is_taken_from_the_grant(shop: Shop) -> None:
    outcomes = await shop.apply(refunded(100), paid())
    assert outcomes == [Outcome.NOTED, Outcome.GRANTED]
    assert await shop.has() == (30_000, 0)


async def test_what_was_spent_of_a_refund_is_owed(shop: Shop) -> None:
    await shop.apply(paid())
    await shop.spend("ann", 35_000)
    await shop.apply(refunded(400))
    assert await shop.has() == (0, 35_000)


async def test_a_dispute_takes_while_it_is_open_and_gives_back_if_it_is_won(shop: Shop) -> None:
    await shop.apply(paid())
    await shop.spend("ann", 15_000)
    assert await shop.apply(disputed("needs_response")) == [Outcome.REVERSED]
    assert await shop.has() == (0, 15_000)
    assert await shop.apply(disputed("under_review")) == [Outcome.NOTED]
    assert await shop.apply(disputed("won")) == [Outcome.RESTORED]
    assert await shop.has() == (25_000, 0)


async def test_a_closed_dispute_does_not_open_again(shop: Shop) -> None:
    await shop.apply(paid(), disputed("won"), disputed("needs_response", at_s=1_800_000_000))
    assert await shop.entries() == [(EntryType.GRANT, 40_000)]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("later", "left"), [("won", 40_000), ("lost", 0)])
async def test_of_what_closed_a_dispute_the_later_counts(
    shop: Shop, later: str, left: int, order: int
) -> None:
    """As after an appeal; of the same second, what we lost."""
    earlier = "lost" if later == "won" else "won"
    closed = [disputed(earlier), disputed(later, at_s=1_790_000_001)]
    await shop.apply(paid(), *closed[::order])
    assert await shop.has() == (left, 0)


async def test_an_inquiry_takes_nothing_unless_it_becomes_a_dispute(shop: Shop) -> None:
    await shop.apply(paid(), disputed("warning_needs_response"))
    assert await shop.has() == (40_000, 0)
    await shop.apply(disputed("needs_response"))
    assert await shop.has() == (0, 0)


async def test_refunds_and_disputes_add_up_to_the_whole_at_most(shop: Shop) -> None:
    await shop.apply(paid(), refunded(100), disputed("needs_response", amount=200))
    assert await shop.has() == (10_000, 0)
    await shop.apply(disputed("lost", number="1", id="dp_2", amount=400))
    assert await shop.has() == (0, 0)
    await shop.apply(disputed("won", id="dp_2", amount=400, at_s=1_790_000_009))
    assert await shop.has() == (10_000, 0)


async def test_a_share_is_rounded_in_the_payers_favour(shop: Shop) -> None:
    await shop.apply(paid(amount_total=300, metadata=told.carried(credits=100)), refunded(299))
    assert await shop.has() == (100 - 99, 0)


async def test_another_currency_than_was_paid_counts_as_all_of_it(shop: Shop) -> None:
    await shop.apply(paid(), paid(number="2"))
    await shop.apply(refunded(1, currency="eur"))
    await shop.apply(disputed("lost", number="2", amount=1, currency="eur"))
    assert await shop.has() == (0, 0)


async def test_an_amount_of_nothing_takes_nothing(shop: Shop) -> None:
    await shop.apply(paid(), refunded(0, currency="eur"), disputed("lost", amount=0))
    assert await shop.has() == (40_000, 0)


async def test_what_cost_nothing_has_no_share_to_take_back(shop: Shop) -> None:
    await shop.apply(paid(amount_total=0), refunded(100))
    assert await shop.has() == (40_000, 0)


async def test_what_the_operator_took_back_is_not_taken_twice(shop: Shop) -> None:
    await shop.apply(paid())
    await shop.ledger.reverse(GRANT, ref="by_hand", amount=30_000)
    await shop.apply(refunded(200))
    assert await shop.has() == (0, 0)
    await shop.apply(refunded(400))
    assert (await shop.entries())[2:] == [(EntryType.REVERSAL, -10_000)]
    # The operator's part stays the operator's to give back.
    await shop.ledger.reverse("by_hand", ref="undone")
    assert await shop.has() == (30_000, 0)
    await shop.apply(disputed("won"))
    assert await shop.has() == (0, 0)


async def test_what_the_operator_gave_back_of_a_refund_is_taken_with_the_next_word(
    shop: Shop,
) -> None:
    await shop.apply(paid(), refunded(100))
    await shop.ledger.reverse(f"{GRANT}:1", ref="goodwill")
    assert await shop.has() == (40_000, 0)
    await shop.apply(refunded(200))
    assert await shop.has() == (20_000, 0)


async def test_a_ref_that_somebody_took_is_not_taken_again(shop: Shop) -> None:
    await shop.ledger.grant("bob", ref=f"{GRANT}:1", amount=5, kind=Kind.ADJUSTMENT)
    await shop.apply(paid(), refunded(100))
    assert await shop.has() == (30_000, 0)
    assert (await shop.ledger.entries())[-1].ref == f"{GRANT}:2"


async def test_what_was_granted_by_hand_under_the_payments_ref_is_its_grant(shop: Shop) -> None:
    await shop.ledger.grant("ann", ref=GRANT, amount=30_000, kind=Kind.ADJUSTMENT)
    assert await shop.apply(paid(), refunded(200)) == [Outcome.NOTED, Outcome.REVERSED]
    assert await shop.has() == (15_000, 0)
    found = await shop.payments.checkout("cs_test_1")
    assert found is not None
    assert found.grant == GRANT


async def test_what_was_granted_by_hand_is_taken_back_though_nobody_heard_of_the_payment(
    shop: Shop,
) -> None:
    """Its own event was lost: the refund says what was charged, and a dispute does not."""
    for number in ("1", "2"):
        ref = f"stripe:pi_{number}"
        await shop.ledger.grant("ann", ref=ref, amount=30_000, kind=Kind.ADJUSTMENT)
    assert await shop.apply(refunded(100)) == [Outcome.REVERSED]
    assert await shop.has() == (30_000 - 7_500 + 30_000, 0)
    opened = disputed("needs_response", number="2", amount=100)
    assert await shop.apply(opened) == [Outcome.REVERSED]
    assert await shop.has() == (30_000 - 7_500, 0)
    assert await shop.cell.redis.pttl(shop.cell.key("payment", "stripe", "pi_2")) == -1
    # Sent again after all, it puts that right.
    assert await shop.apply(paid(number="2"), paid()) == [Outcome.RESTORED, Outcome.NOTED]
    assert await shop.has() == (30_000 - 7_500 + 30_000 - 7_500, 0)


async def test_a_grant_by_hand_to_somebody_else_is_not_what_was_paid(shop: Shop) -> None:
    await shop.ledger.grant("bob", ref=GRANT, amount=30_000, kind=Kind.ADJUSTMENT)
    assert await shop.apply(refunded(400)) == [Outcome.REVERSED]
    assert await shop.has("bob") == (0, 0)
    with pytest.raises(LedgerRefused) as caught:
        await shop.apply(paid())
    assert caught.value.code == "ref_reused"


async def test_where_the_ledger_cannot_book_it_nothing_is_noted(shop: Shop) -> None:
    """And once it can, the event that is sent again is booked."""
    await shop.apply(paid(metadata=told.carried(credits=AMOUNT_MAX - 10)))
    event, other = paid(number="2"), paid(number="3")
    await shop.ledger.grant("bob", ref="stripe:pi_3", amount=5, kind=Kind.ADJUSTMENT)
    before = await shop.cell.redis.keys()
    for which, code in ((event, "ledger_full"), (other, "ref_reused")):
        with pytest.raises(LedgerRefused) as caught:
            await shop.apply(which)
        assert caught.value.code == code
    assert await shop.cell.redis.keys() == before

    await shop.apply(refunded(400))
    assert await shop.apply(event) == [Outcome.GRANTED]
    assert await shop.has() == (40_000, 0)


async def test_a_dispute_of_somebody_elses_payment_goes_away_by_itself(shop: Shop) -> None:
    """A dispute does not say whose it is: others may use the account."""
    await shop.apply(disputed("needs_response"))
    key = shop.cell.key("payment", "stripe", "pi_1")
    assert 89 * DAY_MS < await shop.cell.redis.pttl(key) <= 90 * DAY_MS
    await shop.apply(paid())
    assert await shop.cell.redis.pttl(key) == -1


async def test_what_was_said_of_a_payment_is_kept_with_when_and_what(shop: Shop) -> None:
    events = [refunded(100), paid()]
    await shop.apply(*events)
    found = await shop.cell.redis.hgetall(shop.cell.key("payment", "stripe", "pi_1"))
    for event in events:
        at_ms, kind = found[f"event:{event.id}"].split()
        assert (kind, int(at_ms) > 1_600_000_000_000) == (event.type, True)
    assert (found["user"], found["pack"], found["paid"]) == ("ann", "extra-10", "400")


# A checkout


async def test_a_checkout_is_its_owners_from_the_beginning(shop: Shop) -> None:
    assert await shop.payments.checkout("cs_test_1") is None
    await shop.payments.opened("stripe", Checkout("cs_test_1", "https://x"), PURCHASE)
    assert await shop.payments.checkout("cs_test_1") == CheckoutState(
        "cs_test_1", "ann", "extra-10", 40_000, CheckoutPhase.OPEN, None
    )
    left_ms = await shop.cell.redis.pttl(shop.cell.key("checkout", "cs_test_1"))
    assert 29 * DAY_MS < left_ms <= 30 * DAY_MS


@pytest.mark.parametrize("late", [False, True], ids=["in time", "remembered late"])
async def test_a_checkout_only_goes_forward(shop: Shop, late: bool) -> None:
    async def opened() -> None:
        await shop.payments.opened("stripe", Checkout("cs_test_1", "https://x"), PURCHASE)

    async def state() -> str:
        found = await shop.payments.checkout("cs_test_1")
        assert found is not None
        return found.state

    if not late:
        await opened()
    for event, after in [
        (read(PAID, told.session(status="unpaid")), "processing"),
        (read("checkout.session.expired", told.session(status="unpaid")), "expired"),
        (read(PAID, told.session(status="unpaid")), "expired"),
        (read("checkout.session.async_payment_failed", told.session(status="unpaid")), "failed"),
        (paid(), "paid"),
        (read("checkout.session.async_payment_failed", told.session(status="unpaid")), "paid"),
    ]:
        await shop.apply(event)
        assert await state() == after
    await opened()
    assert await state() == "paid"
    found = await shop.payments.checkout("cs_test_1")
    assert found is not None
    assert found.grant == GRANT


async def test_a_grant_needs_no_checkout_that_is_remembered(shop: Shop) -> None:
    await shop.payments.opened("stripe", Checkout("cs_test_1", "https://x"), PURCHASE)
    await shop.cell.redis.delete(shop.cell.key("checkout", "cs_test_1"))
    assert await shop.apply(paid()) == [Outcome.GRANTED]


async def test_the_scripts_know_the_same_phases() -> None:
    text = source("apply_event")
    for name, phases in (("CHECKOUTS", CheckoutPhase), ("DISPUTES", DisputePhase)):
        told = ", ".join(f"{phase} = {n}" for n, phase in enumerate(phases))
        assert f"local {name} = {{{told}}}" in text
