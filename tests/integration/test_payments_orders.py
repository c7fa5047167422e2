"""All that can be said of a payment, in any order and any number of times: the same in the end as a
model says that only looks at what was said, on every version of Redis, with books that hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.ledger import AMOUNT_MAX, Kind
from quota.payments.provider import Event
from serving.jobs import Cell
from tests import stripe_events as told
from tests.payments import GRANT, PAID, SUCCEEDED, Shop, disputed, read, refunded

FAILED = "checkout.session.async_payment_failed"
EXPIRED = "checkout.session.expired"
CLOSED = {"won", "lost"}


@dataclass(frozen=True)
class Said:
    """One thing that a provider may say: a session's event, ``refunded`` or ``disputed``."""

    what: str
    status: str = ""
    minor: int = 0
    currency: str = "usd"
    dispute: str = ""
    at_s: int = 0


@dataclass(frozen=True)
class Story:
    """What was bought at what price, what was said of it in which order, and what its owner had
    besides and spent after so many of the events."""

    price: int
    credits: int
    said: Sequence[Said]
    other: int
    spends: Mapping[int, int]


SESSIONS = [Said(PAID, "paid"), Said(SUCCEEDED, "paid"), Said(PAID, "unpaid")]
SESSIONS += [Said(FAILED, "unpaid"), Said(EXPIRED, "unpaid")]
STATUSES = ["warning_needs_response", "needs_response", "won", "lost"]
OTHER_MAX = 10_000


@st.composite
def stories(draw: st.DrawFn) -> Story:
    price = draw(st.sampled_from([50, 399, 400, 99_999_999]))
    credits = draw(st.integers(1, 1000) | st.integers(2**52, AMOUNT_MAX - OTHER_MAX))
    minor = st.integers(0, price) | st.sampled_from([1, price - 1, price, 2 * price])
    currency = st.sampled_from(["usd"] * 9 + ["eur"])
    refunds = st.builds(Said, st.just("refunded"), minor=minor, currency=currency)
    statuses = st.lists(st.sampled_from(STATUSES), max_size=4)
    disputes = [
        Said("disputed", status, most, draw(currency), dispute, at_s)
        for dispute, most in (("dp_1", draw(minor)), ("dp_2", draw(minor)))
        for at_s, status in enumerate(draw(statuses))
    ]
    once = [
        *draw(st.sampled_from([[], SESSIONS[:1], SESSIONS[1:3], SESSIONS, SESSIONS[2:]])),
        *draw(st.lists(refunds, max_size=3)),
        *disputes,
    ]
    again = draw(st.lists(st.sampled_from(once), max_size=4)) if once else []
    places = st.integers(0, len(once) + len(again))
    return Story(
        price,
        credits,
        draw(st.permutations([*once, *again])),
        draw(st.integers(0, OTHER_MAX)),
        draw(st.dictionaries(places, st.integers(1, 1000), max_size=3)),
    )


def reversed_by(story: Story) -> int:
    """The model: of the grant's credits, those that are not the buyer's by all that was said."""
    gone = 0
    for currency in ("usd", "eur"):
        most = max(
            (e.minor for e in story.said if (e.what, e.currency) == ("refunded", currency)),
            default=0,
        )
        gone += most if currency == "usd" else story.price * (most > 0)
    for dispute in ("dp_1", "dp_2"):
        mine = [e for e in story.said if e.dispute == dispute]
        closed = sorted((e.at_s, e.status == "lost") for e in mine if e.status in CLOSED)
        is_gone = closed[-1][1] if closed else any(e.status == "needs_response" for e in mine)
        for currency in ("usd", "eur"):
            most = max((e.minor for e in mine if e.currency == currency), default=0)
            most = min(most, story.price) if currency == "usd" else story.price * (most > 0)
            gone += most * is_gone
    return story.credits * min(gone, story.price) // story.price


def event(story: Story, each: Said) -> Event:
    carried = told.carried(credits=story.credits)
    if each.what == "refunded":
        return refunded(each.minor, currency=each.currency, metadata=carried)
    if each.what == "disputed":
        more: dict[str, Any] = {"id": each.dispute, "currency": each.currency}
        return disputed(each.status, at_s=each.at_s, amount=each.minor, **more)
    about = told.session(each.what, each.status, amount_total=story.price, metadata=carried)
    return read(each.what, about)


async def tell(story: Story, url: str) -> None:
    redis: Redis = Redis.from_url(url, decode_responses=True)
    await redis.flushall()
    shop = Shop(Cell(redis))
    await redis.set(shop.cell.key("cell_id"), "cell_a")
    if story.other:
        await shop.ledger.grant("ann", ref="other", amount=story.other, kind=Kind.PROMOTION)
    spent = 0
    # One that is said again is sometimes the same event, and sometimes another that says the same.
    events = {each: event(story, each) for each in story.said}
    for n, each in enumerate(story.said):
        fresh = n % 3 == 0 and each in story.said[:n]
        await shop.apply(event(story, each) if fresh else events[each])
        now, _ = await shop.has()
        if amount := min(story.spends.get(n, 0), now):
            await shop.spend("ann", amount, f"video_{n}")
            spent += amount

    paid = any(each.status == "paid" for each in story.said)
    granted, taken = (story.credits, reversed_by(story)) if paid else (0, 0)
    spendable, debt = await shop.has()
    # What a transient reversal leaves in other grants or as a debt is the same together.
    found = await redis.hgetall(shop.cell.key("credits", "ann"))
    assert int(found.get("available", 0)) - debt == story.other + granted - taken - spent
    assert not (debt and spendable)
    credit = await redis.hgetall(shop.cell.key("credit", GRANT))
    assert (int(credit.get("amount", 0)), int(credit.get("reversed", 0))) == (granted, taken)
    states = {PAID: "processing", FAILED: "failed", EXPIRED: "expired"}
    order = ["processing", "expired", "failed", "paid"]
    said = [
        "paid" if e.status == "paid" else states[e.what] for e in story.said if e.what in states
    ]
    said += ["paid"] if paid else []
    state = await shop.payments.checkout("cs_test_1")
    assert (state and state.state) == (max(said, key=order.index) if said else None)
    await redis.aclose()


def test_any_order_ends_in_what_was_said(redis_server: RedisServer) -> None:
    all_of_it = [
        *SESSIONS,
        Said("refunded", minor=7),
        Said("disputed", "needs_response", 400, dispute="dp_1", at_s=1),
        Said("disputed", "won", 400, dispute="dp_1", at_s=2),
        Said("disputed", "lost", 13, dispute="dp_2", at_s=3),
    ]

    @settings(
        max_examples=80,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(stories())
    @example(Story(400, AMOUNT_MAX - OTHER_MAX, all_of_it, 5, {0: 3}))
    @example(Story(400, AMOUNT_MAX - OTHER_MAX, all_of_it[::-1], 5, {8: 3}))
    def run(story: Story) -> None:
        asyncio.run(tell(story, redis_server.url))

    run()


def test_what_is_owed_is_what_was_spent_of_what_was_taken_back(redis_server: RedisServer) -> None:
    """Where nothing else is there to pay with, to the milli-credit, in any order."""

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stories(), st.floats(0, 1))
    def run(story: Story, share: float) -> None:
        asyncio.run(owe(story, int(share * story.credits), redis_server.url))

    run()


async def owe(story: Story, spent: int, url: str) -> None:
    redis: Redis = Redis.from_url(url, decode_responses=True)
    await redis.flushall()
    shop = Shop(Cell(redis))
    await redis.set(shop.cell.key("cell_id"), "cell_a")
    await shop.apply(event(story, SESSIONS[0]))
    if spent := min(spent, story.credits):
        await shop.spend("ann", spent)
    await shop.apply(*(event(story, each) for each in story.said))
    left = story.credits - spent - reversed_by(story)
    assert await shop.has() == (max(left, 0), max(-left, 0))
    await redis.aclose()
