"""The sandbox speaks Stripe's language, with a secret of its own, to any replica of the ingress."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from quota.payments.provider import Checkout, Outcome, Provider
from quota.payments.sandbox import Sandbox, Say
from quota.payments.stripe_checkout import StripeCheckout
from serving.jobs import Cell
from serving.plan.errors import IdempotencyMismatch, InvalidRequest, NotFound, ServiceUnavailable
from tests import stripe_events as told
from tests.payments import PURCHASE, Shop
from tests.stripe_events import sign

pytestmark = pytest.mark.asyncio

HERE = "http://127.0.0.1:8000"
SECRET = "made by up"
DONE = "http://localhost:3000/?id={CHECKOUT_SESSION_ID}"


@pytest_asyncio.fixture
async def shop(cell: Cell) -> Shop:
    await cell.redis.set(cell.key("cell_id"), "cell_a")
    return Shop(cell)


@pytest.fixture
def sandbox(cell: Cell) -> Sandbox:
    return Sandbox(cell, SECRET, f"{HERE}/")


async def checkout(sandbox: Sandbox, key: str = "key", **change: Any) -> Checkout:
    return await sandbox.checkout(
        dataclasses.replace(PURCHASE, **change),
        success_url=DONE,
        cancel_url=HERE,
        idempotency_key=key,
    )


async def say(shop: Shop, sandbox: Sandbox, which: Checkout, *what: Say) -> list[Outcome]:
    outcomes = []
    for each in what:
        event = sandbox.read(*await sandbox.webhook(which.id, each))
        assert event is not None
        outcomes.append((await shop.payments.apply("sandbox", event)).outcome)
    return outcomes


async def test_a_checkout_is_a_page_of_ours_that_every_replica_knows(
    sandbox: Sandbox, cell: Cell
) -> None:
    made = await checkout(sandbox)

    assert made.url == f"{HERE}/sandbox/checkout/{made.id}"
    found = await Sandbox(cell, SECRET, HERE).session(made.id)
    assert found is not None
    assert (found.id, found.purchase, found.cancel_url) == (made.id, PURCHASE, HERE)
    assert found.success_url == f"http://localhost:3000/?id={made.id}"
    assert await sandbox.session("cs_sandbox_other") is None


async def test_the_same_key_is_the_same_page_and_stands_for_one_purchase(sandbox: Sandbox) -> None:
    first, *others = await asyncio.gather(*(checkout(sandbox) for _ in range(8)))
    assert set(others) == {first}
    with pytest.raises(IdempotencyMismatch):
        await checkout(sandbox, price_minor=1)
    ids = {(await checkout(sandbox, **change)).id for change in ({"user": "bob"}, {"key": "k2"})}
    assert len(ids - {first.id}) == 2


PAYS = [
    ([Say.COMPLETED], 40_000),
    ([Say.PENDING, Say.SUCCEEDED], 40_000),
    ([Say.PENDING, Say.FAILED], 0),
    ([Say.EXPIRED], 0),
    ([Say.REFUNDED], 0),
    ([Say.DISPUTE_LOST], 0),
    ([Say.COMPLETED, Say.COMPLETED, Say.SUCCEEDED], 40_000),
    ([Say.COMPLETED, Say.DISPUTE_OPENED], 0),
    ([Say.COMPLETED, Say.DISPUTE_OPENED, Say.DISPUTE_WON], 40_000),
    ([Say.COMPLETED, Say.REFUNDED], 0),
]


@pytest.mark.parametrize(("what", "balance"), PAYS)
async def test_what_it_says_is_what_is_booked_in_any_order(
    shop: Shop, sandbox: Sandbox, what: list[Say], balance: int
) -> None:
    for n, order in enumerate(itertools.permutations(what)):
        user = f"user{n}"
        await say(shop, sandbox, await checkout(sandbox, user=user), *order)
        assert await shop.has(user) == (balance, 0)


async def test_a_part_may_be_refunded(shop: Shop, sandbox: Sandbox) -> None:
    made = await checkout(sandbox)
    await say(shop, sandbox, made, Say.COMPLETED)
    event = sandbox.read(*await sandbox.webhook(made.id, Say.REFUNDED, minor=100))
    assert event is not None
    await shop.payments.apply("sandbox", event)
    assert await shop.has() == (30_000, 0)


async def test_of_what_was_never_opened_nothing_is_said(sandbox: Sandbox) -> None:
    with pytest.raises(NotFound):
        await sandbox.webhook("cs_sandbox_other", Say.COMPLETED)


async def test_neither_takes_the_others_word(sandbox: Sandbox) -> None:
    stripe = StripeCheckout("sk_test_x", [told.SECRET])
    body, signature = await sandbox.webhook((await checkout(sandbox)).id, Say.COMPLETED)
    assert sandbox.read(body, signature)
    theirs = told.event("checkout.session.completed", told.session())
    refused: list[tuple[Provider, bytes, str | None]] = [
        (stripe, body, signature),
        (sandbox, theirs, sign(theirs)),
        (sandbox, body, sign(body)),
        (Sandbox(Cell(Redis()), "another secret", HERE), body, signature),
        (sandbox, body[:-1], signature),
        (sandbox, body.replace(b"40000", b"90000"), signature),
        (sandbox, body, None),
    ]
    for provider, said, signed in refused:
        with pytest.raises(InvalidRequest) as caught:
            provider.read(said, signed)
        assert caught.value.code == "invalid_signature"


@pytest.mark.parametrize("what", Say)
async def test_its_events_are_a_part_of_stripes(sandbox: Sandbox, what: Say) -> None:
    """It says nothing that Stripe's do not have."""
    made = await checkout(sandbox)
    event = json.loads((await sandbox.webhook(made.id, what))[0])
    kind, about = event["type"], event["data"]["object"]
    if kind.startswith("checkout.session."):
        theirs = told.session(kind, about["payment_status"])
    elif kind == "charge.refunded":
        theirs = told.charge(400)
    else:
        theirs = told.dispute(about["status"])
    assert set(about) <= set(theirs)
    assert about["object"] == theirs["object"]
    assert about["metadata"] == theirs["metadata"]
    assert set(event) <= set(json.loads(told.event(kind, theirs)))


async def test_without_redis_there_is_no_page() -> None:
    redis: Redis = Redis(port=1, retry=Retry(NoBackoff(), 0), decode_responses=True)
    gone = Sandbox(Cell(redis), SECRET, HERE)
    with pytest.raises(ServiceUnavailable):
        await checkout(gone)
    with pytest.raises(ServiceUnavailable):
        await gone.session("cs_sandbox_1")
