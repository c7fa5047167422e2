"""Stripe's own library, against a server that takes nothing Stripe would not take."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
import stripe
from redis.asyncio import Redis

from quota.payments import stripe_checkout
from quota.payments.provider import Checkout, Purchase
from quota.payments.settings import PaymentSettings, open_provider
from quota.payments.stripe_checkout import StripeCheckout
from serving.jobs import Cell
from serving.plan.errors import IdempotencyMismatch, InvalidRequest, ServiceUnavailable
from tests import stripe_events as told
from tests.stripe_events import SECRET
from tests.stripe_server import KEY, SESSIONS, StripeServer, stripe_server

pytestmark = [
    pytest.mark.asyncio,
    # Of Stripe's library, which hands its form to httpx so.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

PURCHASE = Purchase(
    cell_id="cell_a",
    user="shop/ann",
    pack="extra-10",
    title="10 extra generations – für dich",
    credits=40_000,
    expires_days=365,
    price_minor=400,
    currency="usd",
)
CARRIED = {
    "reelserve_cell": "cell_a",
    "reelserve_user": "shop/ann",
    "reelserve_pack": "extra-10",
    "reelserve_credits": "40000",
    "reelserve_days": "365",
}


DONE = "https://shop.example/?id={CHECKOUT_SESSION_ID}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StripeServer]:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    with stripe_server() as server:
        yield server


@pytest_asyncio.fixture
async def provider(server: StripeServer) -> AsyncIterator[StripeCheckout]:
    provider = StripeCheckout(KEY, [SECRET], server.url)
    yield provider
    await provider.aclose()


async def checkout(
    provider: StripeCheckout,
    purchase: Purchase = PURCHASE,
    key: str = "key",
    urls: tuple[str, str] = (DONE, "https://shop.example/no"),
) -> Checkout:
    return await provider.checkout(
        purchase, success_url=urls[0], cancel_url=urls[1], idempotency_key=key
    )


async def test_a_checkout_is_a_session_that_carries_what_a_grant_needs(
    provider: StripeCheckout, server: StripeServer
) -> None:
    made = await checkout(provider)

    session = server.sessions[made.id]
    assert made.url == session["url"]
    assert (session["amount_total"], session["currency"], session["mode"]) == (
        400,
        "usd",
        "payment",
    )
    assert session["client_reference_id"] == "shop/ann"
    assert session["metadata"] == session["payment_intent_metadata"] == CARRIED
    assert session["success_url"] == DONE
    assert session["cancel_url"] == "https://shop.example/no"
    ((method, path, headers),) = server.requests
    assert (method, path) == ("POST", SESSIONS)
    assert "X-Stripe-Client-Telemetry" not in headers


async def test_it_works_as_the_environment_sets_it_up(
    server: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"PROVIDER": "stripe", "STRIPE_API_BASE": server.url, "STRIPE_SECRET_KEY": f"{KEY}\n"}
    for name, value in (given | {"STRIPE_WEBHOOK_SECRETS": f"whsec_old, {SECRET}\n"}).items():
        monkeypatch.setenv(f"REELSERVE_PAYMENTS_{name}", value)
    provider = open_provider(PaymentSettings.load(), Cell(Redis()), "https://shop.example")
    assert isinstance(provider, StripeCheckout)
    assert (await checkout(provider)).id in server.sessions
    body = told.event("checkout.session.completed", told.session())
    assert provider.read(body, told.sign(body))
    await provider.aclose()


async def test_credits_that_never_expire_say_nothing_of_days(
    provider: StripeCheckout, server: StripeServer
) -> None:
    made = await checkout(provider, dataclasses.replace(PURCHASE, expires_days=None))
    assert "reelserve_days" not in server.sessions[made.id]["metadata"]


async def test_the_same_key_is_the_same_page(
    provider: StripeCheckout, server: StripeServer
) -> None:
    first, again = await checkout(provider), await checkout(provider)
    assert first == again
    assert len(server.sessions) == 1
    assert (await checkout(provider, key="another")).id != first.id


async def test_a_key_stands_for_one_purchase_of_one_user_of_one_cell(
    provider: StripeCheckout, server: StripeServer
) -> None:
    mine = await checkout(provider)
    with pytest.raises(IdempotencyMismatch):
        await checkout(provider, dataclasses.replace(PURCHASE, price_minor=500))
    for other in (
        dataclasses.replace(PURCHASE, user="bob"),
        dataclasses.replace(PURCHASE, cell_id="cell_b"),
    ):
        assert (await checkout(provider, other)).id != mine.id
    for _, _, headers in server.requests:
        assert "ann" not in headers["Idempotency-Key"]


@pytest.mark.parametrize("how", ["lost", 500])
async def test_a_lost_answer_is_asked_for_again_and_makes_no_second_session(
    provider: StripeCheckout, server: StripeServer, how: int | str
) -> None:
    server.fails = [how, how]
    made = await checkout(provider)
    assert list(server.sessions) == [made.id]
    assert len(server.requests) == 3
    keys = {headers["Idempotency-Key"] for _, _, headers in server.requests}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("how", "attempts", "code", "says"),
    [
        ("lost", 3, "payment_provider_unavailable", "does not answer as it should"),
        ("silent", 3, "payment_provider_unavailable", "does not answer as it should"),
        (500, 3, "payment_provider_unavailable", "does not answer as it should"),
        (429, 1, "payment_provider_unavailable", "has too much to do"),
        (401, 1, "payment_provider_refused", "does not accept our key. Tell the operator"),
        (403, 1, "payment_provider_refused", "does not accept our key. Tell the operator"),
    ],
)
async def test_where_stripe_fails_the_caller_hears_what_to_do_and_no_secret(
    server: StripeServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: int | str,
    attempts: int,
    code: str,
    says: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(stripe_checkout, "TIMEOUT_S", 0.2)
    provider = StripeCheckout(KEY, [SECRET], server.url)
    server.fails = [how] * 3

    with pytest.raises(ServiceUnavailable) as caught:
        await checkout(provider)
    await provider.aclose()

    assert caught.value.code == code
    assert says in caught.value.message
    assert len(server.requests) == attempts
    ours = [r for r in caplog.records if r.name == "quota.payments.stripe_checkout"]
    assert [r.levelno for r in ours] == [logging.ERROR if how in (401, 403) else logging.WARNING]
    for secret in (KEY, SECRET):
        assert secret not in caplog.text
        assert secret not in caught.value.message


async def test_a_key_that_stripe_does_not_know_is_told_to_the_operator(
    server: StripeServer, caplog: pytest.LogCaptureFixture
) -> None:
    provider = StripeCheckout("sk_test_" + "zz" * 20, [SECRET], server.url)
    with pytest.raises(ServiceUnavailable, match="Tell the operator"):
        await checkout(provider)
    await provider.aclose()
    assert "Stripe refuses REELSERVE_PAYMENTS_STRIPE_SECRET_KEY with status 401" in caplog.text
    assert "zzzz" not in caplog.text


async def test_nobody_at_the_address_is_told_as_that(server: StripeServer) -> None:
    # A port that was free a moment ago.
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    taken.close()
    await taken.wait_closed()
    provider = StripeCheckout(KEY, [SECRET], f"http://127.0.0.1:{port}")
    with pytest.raises(ServiceUnavailable, match="try again shortly"):
        await checkout(provider)
    await provider.aclose()


@pytest.mark.parametrize(
    ("param", "urls"),
    [("success_url", ("shop.example", DONE)), ("cancel_url", (DONE, "shop.example"))],
)
async def test_an_address_that_stripe_does_not_take_is_the_callers_mistake(
    provider: StripeCheckout, param: str, urls: tuple[str, str]
) -> None:
    with pytest.raises(InvalidRequest, match="Not a valid URL") as caught:
        await checkout(provider, urls=urls)
    assert caught.value.param == param


@pytest.mark.parametrize("change", [{"price_minor": 10}, {"currency": "xxx"}])
async def test_a_pack_that_stripe_does_not_take_is_the_operators_mistake(
    provider: StripeCheckout,
    server: StripeServer,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, object],
) -> None:
    with pytest.raises(ServiceUnavailable, match="Tell the operator") as caught:
        await checkout(provider, dataclasses.replace(PURCHASE, **change))  # type: ignore[arg-type]
    assert caught.value.code == "payment_provider_refused"
    assert "Stripe refuses a purchase (request req_test): " in caplog.text
    assert server.sessions == {}


async def test_many_at_once_get_a_page_each(provider: StripeCheckout, server: StripeServer) -> None:
    made = await asyncio.gather(*(checkout(provider, key=f"k{n % 8}") for n in range(32)))
    assert len({each.id for each in made}) == 8
    assert len(server.sessions) == 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mode": None}, "Missing required param: mode."),
        ({"line_items[0][quantity]": None}, "Missing required param: line_items[0][quantity]."),
        ({"line_items[0][price_data][unit_amount]": "4.00"}, "Invalid integer: 4.00"),
        ({"line_items[0][price_data][unit_amount]": "10"}, "total amount must convert"),
        ({"line_items[0][amount]": "400"}, "Received unknown parameter: line_items[0][amount]"),
        ({"client_reference": "x"}, "Received unknown parameter: client_reference"),
        ({"client_reference_id": "x" * 201}, "At most 200"),
        ({"metadata[" + "k" * 41 + "]": "v"}, "Metadata keys have up to 40"),
        ({"success_url": "nowhere"}, "Not a valid URL"),
    ],
)
async def test_the_server_takes_nothing_that_stripe_would_not(
    server: StripeServer, change: dict[str, str | None], says: str
) -> None:
    """What the tests above rest on."""
    form = {
        "mode": "payment",
        "success_url": "https://shop.example",
        "line_items[0][quantity]": "1",
        "line_items[0][price_data][currency]": "usd",
        "line_items[0][price_data][unit_amount]": "400",
        "line_items[0][price_data][product_data][name]": "x",
    }
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Stripe-Version": "2026-10-28.endive",
        "Idempotency-Key": "k",
    }
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
        wrong = {name: value for name, value in (form | change).items() if value is not None}
        answer = await client.post(SESSIONS, data=wrong)
        assert (answer.status_code, answer.json()["error"]["type"]) == (
            400,
            "invalid_request_error",
        )
        assert says in answer.json()["error"]["message"]
        # What was wrong is not remembered under the key.
        assert (await client.post(SESSIONS, data=form)).status_code == 200
        again = await client.post(SESSIONS, data=form)
        assert again.headers["Idempotent-Replayed"] == "true"
        other = await client.post(SESSIONS, data=form | {"success_url": "https://other.example"})
        assert (other.status_code, other.json()["error"]["type"]) == (400, "idempotency_error")
        assert (await client.get(SESSIONS)).status_code == 404
        del client.headers["Stripe-Version"]
        assert (await client.post(SESSIONS, data=form)).status_code == 400
