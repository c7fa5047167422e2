"""Credits are bought over HTTP: packs, checkouts, and what the provider's webhooks do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from redis.asyncio import Redis
from stripe import WebhookSignature

from quota.payments.sandbox import Sandbox, Say
from quota.payments.stripe_checkout import StripeCheckout
from serving.api import Services
from serving.api.keys import Scope
from serving.api.shop import price_text
from serving.jobs import Cell
from serving.media import ArtifactStore, open_store
from serving.plan.catalog import Model
from tests import stripe_events as told
from tests.api import as_user, error_of, services_over, serving
from tests.stripe_server import KEY as STRIPE_KEY
from tests.stripe_server import stripe_server

pytestmark = pytest.mark.asyncio

SECRET = "the-sandbox's-secret"
URL = "http://127.0.0.1:1"
"""Of the sandbox. Nobody listens there."""
WEBHOOK = "/v1/payments/sandbox/webhook"
PACKS = {
    "currency": "eur",
    "packs": {
        "ten": {"title": "Ten clips", "credits": 40, "price_minor": 405, "expires_days": 30},
        "drop": {"title": "A drop", "credits": 0.125, "price_minor": 5},
    },
}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def packs_file(tmp_path: Path) -> Path:
    file = tmp_path / "packs.yaml"
    file.write_text(yaml.safe_dump(PACKS, sort_keys=False))
    return file


@pytest.fixture
def sandbox(cell: Cell) -> Sandbox:
    return Sandbox(cell, SECRET, URL)


@pytest.fixture
def services(
    redis: Redis, store: ArtifactStore, packs_file: Path, sandbox: Sandbox, demo_model: Model
) -> Services:
    return services_over(redis, store, demo_model, packs_file=packs_file, provider=sandbox)


@pytest_asyncio.fixture
async def ann(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with as_user(services) as client:
        yield client


async def check_out(
    client: httpx.AsyncClient, pack: str = "ten", key: str | None = None, **fields: str
) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    body = {"pack": pack, **fields}
    return await client.post("/v1/credits/checkout", json=body, headers=headers)


async def opened(client: httpx.AsyncClient, pack: str = "ten", **fields: str) -> str:
    answer = await check_out(client, pack, **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def tell(
    client: httpx.AsyncClient, body: bytes, signature: str | None, to: str = WEBHOOK
) -> httpx.Response:
    """A webhook, which comes without a key."""
    headers = {} if signature is None else {"stripe-signature": signature}
    async with httpx.AsyncClient(transport=client._transport, base_url="http://test") as provider:
        return await provider.post(to, content=body, headers=headers)


async def said(
    client: httpx.AsyncClient, sandbox: Sandbox, checkout: str, say: Say, **more: int
) -> str:
    """What came of a webhook that says so."""
    answer = await tell(client, *await sandbox.webhook(checkout, say, **more))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["outcome"])


async def state_of(client: httpx.AsyncClient, checkout: str) -> str:
    return str((await client.get(f"/v1/credits/checkout/{checkout}")).json()["state"])


async def balance_of(client: httpx.AsyncClient) -> float:
    return float((await client.get("/v1/credits")).json()["balance"])


async def test_packs_are_listed_with_their_prices(ann: httpx.AsyncClient) -> None:
    shop = (await ann.get("/v1/credits/packs")).json()
    assert (shop["object"], shop["provider"]) == ("list", "sandbox")
    assert shop["data"] == [
        {
            "id": "ten",
            "object": "credit_pack",
            "title": "Ten clips",
            "credits": 40,
            "price": "4.05 eur",
            "price_minor": 405,
            "currency": "eur",
            "expires_days": 30,
        },
        {
            "id": "drop",
            "object": "credit_pack",
            "title": "A drop",
            "credits": 0.125,
            "price": "0.05 eur",
            "price_minor": 5,
            "currency": "eur",
            "expires_days": None,
        },
    ]


@pytest.mark.parametrize(
    ("minor", "currency", "written"),
    [
        (400, "usd", "4.00 usd"),
        (7, "eur", "0.07 eur"),
        (400, "jpy", "400 jpy"),
        (1234, "kwd", "1.234 kwd"),
    ],
)
async def test_prices_are_in_the_unit_people_know(minor: int, currency: str, written: str) -> None:
    assert price_text(minor, currency) == written


async def test_a_pack_is_bought(ann: httpx.AsyncClient, sandbox: Sandbox) -> None:
    made = (await check_out(ann)).json()
    assert made["url"] == f"{URL}/sandbox/checkout/{made['id']}"
    assert (made["pack"], made["title"], made["price"]) == ("ten", "Ten clips", "4.05 eur")
    checkout = made["id"]
    now = (await ann.get(f"/v1/credits/checkout/{checkout}")).json()
    assert now == {
        "id": checkout,
        "object": "checkout",
        "pack": "ten",
        "credits": 40,
        "state": "open",
        "grant": None,
    }
    assert await balance_of(ann) == 0, "nothing is granted but by a webhook"
    before = time.time()
    assert await said(ann, sandbox, checkout, Say.COMPLETED) == "granted"
    now = (await ann.get(f"/v1/credits/checkout/{checkout}")).json()
    assert now["state"] == "paid"
    (grant,) = (await ann.get("/v1/credits")).json()["grants"]
    assert (grant["ref"], grant["kind"], grant["left"]) == (now["grant"], "purchase", 40)
    assert grant["expires_at"] == pytest.approx(before + 30 * 24 * 3600, abs=60)
    entries = (await ann.get("/v1/credits/ledger")).json()["data"]
    assert [(entry["type"], entry["ref"]) for entry in entries] == [("grant", now["grant"])]


async def test_a_payment_that_takes_its_time_or_fails(
    ann: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    slow, never = await opened(ann), await opened(ann, "drop")
    assert await said(ann, sandbox, slow, Say.PENDING) == "noted"
    assert (await state_of(ann, slow), await balance_of(ann)) == ("processing", 0)
    assert await said(ann, sandbox, slow, Say.SUCCEEDED) == "granted"
    assert (await state_of(ann, slow), await balance_of(ann)) == ("paid", 40)
    await said(ann, sandbox, never, Say.PENDING)
    assert await said(ann, sandbox, never, Say.FAILED) == "noted"
    assert (await state_of(ann, never), await balance_of(ann)) == ("failed", 40)
    left = await opened(ann)
    await said(ann, sandbox, left, Say.EXPIRED)
    assert await state_of(ann, left) == "expired"


async def test_a_refund_takes_the_credits_back(ann: httpx.AsyncClient, sandbox: Sandbox) -> None:
    checkout = await opened(ann)
    await said(ann, sandbox, checkout, Say.COMPLETED)
    assert await said(ann, sandbox, checkout, Say.REFUNDED) == "reversed"
    assert await balance_of(ann) == 0


async def test_a_key_opens_one_checkout(ann: httpx.AsyncClient, services: Services) -> None:
    first = (await check_out(ann, key="k1")).json()
    assert (await check_out(ann, key="k1")).json() == first
    other = await check_out(ann, "drop", key="k1")
    assert error_of(other, 422)["code"] == "idempotency_key_reused"
    elsewhere = await check_out(ann, key="k1", cancel_url="https://shop.example/")
    assert error_of(elsewhere, 422)["code"] == "idempotency_key_reused"
    ids = {first["id"], await opened(ann), await opened(ann)}
    ids.add((await check_out(ann, key="k2")).json()["id"])
    async with as_user(services, "bob") as bob:
        ids.add((await check_out(bob, key="k1")).json()["id"])
    assert len(ids) == 5
    bad = await check_out(ann, key="a b")
    assert error_of(bad, 400)["code"] == "invalid_idempotency_key"


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "pack", "missing_parameter"),
    ({"pack": "none"}, "pack", "unknown_pack"),
    ({"pack": "ten", "price_minor": 1}, "price_minor", "unknown_parameter"),
    ({"pack": "ten", "success_url": "javascript:alert(1)"}, "success_url", "invalid_value"),
    ({"pack": "ten", "success_url": "//shop.example"}, "success_url", "invalid_value"),
    ({"pack": "ten", "cancel_url": "https://"}, "cancel_url", "invalid_value"),
    ({"pack": "ten", "cancel_url": "https://a b.example/"}, "cancel_url", "invalid_value"),
    ({"pack": "ten", "cancel_url": "https://a;b/"}, "cancel_url", "invalid_value"),
    ({"pack": "ten", "cancel_url": "https://[::1/"}, "cancel_url", "invalid_value"),
    ({"pack": "ten", "cancel_url": "https://a/\r\nx: y"}, "cancel_url", "invalid_value"),
    ({"pack": "ten", "cancel_url": "https://a/" + 2000 * "x"}, "cancel_url", "invalid_value"),
]


async def test_a_checkout_that_makes_no_sense_is_refused(ann: httpx.AsyncClient) -> None:
    for fields, param, code in MISTAKES:
        error = error_of(await ann.post("/v1/credits/checkout", json=fields), 400)
        assert (error["param"], error["code"]) == (param, code), fields


async def test_the_buyer_comes_back_to_where_was_said_or_to_us(
    ann: httpx.AsyncClient, services: Services, sandbox: Sandbox
) -> None:
    theirs = "https://shop.example:8443/done?c={CHECKOUT_SESSION_ID}"
    checkout = await opened(ann, success_url=theirs, cancel_url="http://shop.example")
    session = await sandbox.session(checkout)
    assert session is not None
    assert session.success_url == f"https://shop.example:8443/done?c={checkout}"
    assert session.cancel_url == "http://shop.example"
    session = await sandbox.session(await opened(ann))
    assert session is not None
    assert session.success_url.startswith("http://test/")
    for url in (session.success_url, session.cancel_url):
        page = await ann.get(url, headers={"authorization": ""})
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
    public = dataclasses.replace(
        services,
        settings=services.settings.model_copy(update={"public_url": "https://api.example/"}),
    )
    async with as_user(public) as client:
        session = await sandbox.session(await opened(client))
    assert session is not None
    assert session.success_url == "https://api.example/checkout/paid"


async def test_scopes(services: Services) -> None:
    async with serving(services) as client:

        async def allowed(scope: Scope) -> tuple[int, int, int]:
            _, key = await services.keys.create("ann", {scope})
            client.headers["authorization"] = f"Bearer {key}"
            look = await client.get("/v1/credits/packs")
            one = await client.get("/v1/credits/checkout/cs_none")
            return look.status_code, (await check_out(client)).status_code, one.status_code

        assert await allowed(Scope.GENERATE) == (200, 200, 404)
        assert await allowed(Scope.READ) == (200, 403, 404)
        assert await allowed(Scope.ADMIN) == (403, 403, 403)
        client.headers.pop("authorization")
        assert (await client.get("/v1/credits/packs")).status_code == 401
        assert (await check_out(client)).status_code == 401


async def test_a_checkout_is_its_buyers_alone(
    ann: httpx.AsyncClient, services: Services, sandbox: Sandbox
) -> None:
    checkout = await opened(ann)
    async with as_user(services, "bob") as bob:
        for path in (checkout, "cs_none"):
            answer = await bob.get(f"/v1/credits/checkout/{path}")
            assert error_of(answer, 404)["code"] == "checkout_not_found"
    # An end user's purchases are theirs, not the service's.
    eve = {"x-end-user": "eve"}
    theirs = (await ann.post("/v1/credits/checkout", json={"pack": "drop"}, headers=eve)).json()
    error_of(await ann.get(f"/v1/credits/checkout/{theirs['id']}"), 404)
    await said(ann, sandbox, theirs["id"], Say.COMPLETED)
    assert await balance_of(ann) == 0
    assert (await ann.get("/v1/credits", headers=eve)).json()["balance"] == 0.125


async def test_without_a_provider_nothing_is_sold(
    ann: httpx.AsyncClient, services: Services
) -> None:
    none = dataclasses.replace(services, provider=None)
    async with serving(none) as client:
        client.headers.update(ann.headers)
        assert (await client.get("/v1/credits/packs")).json()["provider"] is None
        answer = await check_out(client)
        error = error_of(answer, 501)
        assert error["code"] == "payments_not_configured"
        assert "REELSERVE_PAYMENTS_PROVIDER" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert error_of(await tell(client, b"{}", "x"), 404)["code"] == "unknown_provider"
        assert (await client.get("/sandbox/checkout/cs_none")).status_code == 404


async def test_a_refusal_says_where_credits_come_from(
    ann: httpx.AsyncClient, services: Services
) -> None:
    body = {"prompt": "x", "service_tier": "priority"}
    assert "Buy credits" in error_of(await ann.post("/v1/videos", json=body), 429)["message"]
    none = dataclasses.replace(services, provider=None)
    async with serving(none) as client:
        client.headers.update(ann.headers)
        answer = await client.post("/v1/videos", json=body)
    assert "Ask the operator for credits" in error_of(answer, 429)["message"]


async def test_nobody_opens_checkouts_without_end(
    ann: httpx.AsyncClient, services: Services
) -> None:
    few = services.settings.model_copy(update={"checkouts_per_hour": 2})
    async with serving(dataclasses.replace(services, settings=few)) as client:
        client.headers.update(ann.headers)
        assert [(await check_out(client)).status_code for _ in range(3)] == [200, 200, 429]
        answer = await check_out(client)
        assert error_of(answer, 429)["code"] == "rate_limit_exceeded"
        assert 0 < int(answer.headers["retry-after"]) <= 3600
        eve = {"x-end-user": "eve"}
        other = await client.post("/v1/credits/checkout", json={"pack": "ten"}, headers=eve)
        assert other.status_code == 200, "each user has their own"


# Webhooks.


async def test_what_the_provider_did_not_say_just_now_grants_nothing(
    ann: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    body, good = await sandbox.webhook(await opened(ann), Say.COMPLETED)
    text = body.decode()
    stale = WebhookSignature.generate_signature_header(text, SECRET, int(time.time()) - 301)
    forged = WebhookSignature.generate_signature_header(text, "another-secret")
    wrong: list[tuple[bytes, str | None]] = [
        (body, None),
        (body, ""),
        (body, "v1"),
        (body, "t=1,v1=00"),
        (body, forged),
        (body, stale),
        (body[:-1], good),
        (body.replace(b'"reelserve_credits": "40000"', b'"reelserve_credits": "90000"'), good),
        (b"", good),
        (b"\xff", good),
    ]
    assert wrong[7][0] != body
    for sent, signature in wrong:
        answer = await tell(ann, sent, signature)
        assert error_of(answer, 400)["code"] == "invalid_signature"
    assert await balance_of(ann) == 0
    assert (await tell(ann, body, good)).json()["outcome"] == "granted"


async def test_a_webhook_that_comes_again_grants_once(
    ann: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    checkout = await opened(ann)
    event = await sandbox.webhook(checkout, Say.COMPLETED)
    outcomes = [(await tell(ann, *event)).json()["outcome"] for _ in range(3)]
    assert outcomes == ["granted", "duplicate", "duplicate"]
    assert await said(ann, sandbox, checkout, Say.COMPLETED) == "noted", "another event, same money"
    assert await balance_of(ann) == 40


async def test_a_signed_event_that_is_not_ours_is_taken_and_ignored(
    ann: httpx.AsyncClient, sandbox: Sandbox, redis: Redis, services: Services
) -> None:
    body, _ = await sandbox.webhook(await opened(ann), Say.COMPLETED)
    cell_id = await services.payments.cell_id()
    for other in (
        body.replace(cell_id.encode(), b"cell_other"),
        body.replace(b"checkout.session.completed", b"customer.created"),
        b"[]",
    ):
        assert other != body
        signature = WebhookSignature.generate_signature_header(other.decode(), SECRET)
        answer = await tell(ann, other, signature)
        assert (answer.status_code, answer.json()["outcome"]) == (200, "ignored")
    assert await balance_of(ann) == 0


async def test_only_the_configured_provider_is_listened_to(
    ann: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    event = await sandbox.webhook(await opened(ann), Say.COMPLETED)
    answer = await tell(ann, *event, to="/v1/payments/stripe/webhook")
    assert error_of(answer, 404)["code"] == "unknown_provider"
    assert await balance_of(ann) == 0


async def test_a_body_too_large_is_not_read(ann: httpx.AsyncClient, services: Services) -> None:
    body = b" " * (services.settings.body_bytes_max + 1)
    assert error_of(await tell(ann, body, "t=1,v1=00"), 413)["code"] == "request_too_large"


async def test_with_redis_away_nothing_is_done_and_the_repeat_grants(
    ann: httpx.AsyncClient, services: Services, store: ArtifactStore, demo_model: Model
) -> None:
    sandbox = services.provider
    assert isinstance(sandbox, Sandbox)
    event = await sandbox.webhook(await opened(ann), Say.COMPLETED)
    away: Redis = Redis(port=1, decode_responses=True)
    lost = services_over(away, store, demo_model, provider=Sandbox(Cell(away), SECRET, URL))
    async with serving(lost) as client:
        answer = await tell(client, *event)
        assert error_of(answer, 503)["code"] == "service_unavailable"
        assert int(answer.headers["retry-after"]) > 0
    assert await balance_of(ann) == 0
    assert (await tell(ann, *event)).json()["outcome"] == "granted"
    assert await balance_of(ann) == 40


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # Stripe's library, to httpx
async def test_stripe_sells_in_the_same_way(ann: httpx.AsyncClient, services: Services) -> None:
    """Against a server that takes nothing Stripe would not take."""
    with stripe_server() as server:
        stripe = StripeCheckout(STRIPE_KEY, [told.SECRET], server.url)
        async with serving(dataclasses.replace(services, provider=stripe)) as client:
            client.headers.update(ann.headers)
            assert (await client.get("/v1/credits/packs")).json()["provider"] == "stripe"
            made = (await check_out(client, key="k")).json()
            assert made == (await check_out(client, key="k")).json()
            assert made["url"].startswith("https://checkout.stripe.com/")
            (session,) = server.sessions.values()
            assert (session["amount_total"], session["currency"]) == (405, "eur")
            assert session["success_url"] == "http://test/checkout/paid"

            paid = session | {"payment_status": "paid", "payment_intent": "pi_1"}
            body = told.event("checkout.session.completed", paid)
            to = "/v1/payments/stripe/webhook"
            forged = await tell(client, body, told.sign(body, "whsec_another"), to)
            assert error_of(forged, 400)["code"] == "invalid_signature"
            answer = await tell(client, body, told.sign(body), to)
            assert answer.json() == {"object": "webhook", "outcome": "granted"}
            assert await state_of(client, made["id"]) == "paid"
            assert await balance_of(client) == 40

            server.fails.append(401)
            refused = error_of(await check_out(client), 503)
            assert refused["code"] == "payment_provider_refused"
            assert (await client.get(f"/sandbox/checkout/{made['id']}")).status_code == 404
        await stripe.aclose()


# The page, as far as it needs no browser.


NOT_LOCAL = [
    {"host": "shop.example"},
    {"host": "10.0.0.1:8000"},
    {"host": "[::1"},
    {"host": "localhost.shop.example"},
    {"x-forwarded-for": "127.0.0.1"},
    {"forwarded": "for=127.0.0.1"},
    {"x-forwarded-host": "127.0.0.1"},
    {"x-real-ip": "127.0.0.1"},
    {"via": "1.1 proxy"},
    {"origin": "https://shop.example"},
    {"origin": "null"},
]


async def test_the_page_is_for_this_machine_alone(ann: httpx.AsyncClient) -> None:
    path, local = f"/sandbox/checkout/{await opened(ann)}", {"host": "127.0.0.1:8000"}
    assert (await ann.get(path, headers=local)).status_code == 200
    for headers in NOT_LOCAL:
        refused = await ann.get(path, headers=local | headers)
        assert error_of(refused, 403)["code"] == "sandbox_is_local", headers
        refused = await ann.post(path, data={"press": "pay"}, headers=local | headers)
        assert error_of(refused, 403)["code"] == "sandbox_is_local", headers
    assert await balance_of(ann) == 0


async def test_the_page_is_for_this_machine_alone_whatever_the_host_says(
    ann: httpx.AsyncClient, services: Services
) -> None:
    """A replica listens on all interfaces: somebody may reach it past HAProxy."""
    checkout = await opened(ann)
    transport = ann._transport
    assert isinstance(transport, httpx.ASGITransport)
    away = httpx.ASGITransport(app=transport.app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=away, base_url="http://127.0.0.1:8000") as client:
        refused = await client.get(f"/sandbox/checkout/{checkout}")
    assert error_of(refused, 403)["code"] == "sandbox_is_local"


async def test_a_page_that_is_none_and_a_button_that_is_none(ann: httpx.AsyncClient) -> None:
    local = {"host": "localhost:8000"}
    page = await ann.get("/sandbox/checkout/cs_sandbox_none", headers=local)
    assert error_of(page, 404)["code"] == "checkout_not_found"
    path = f"/sandbox/checkout/{await opened(ann)}"
    for data in ({"press": "steal"}, {}):
        assert error_of(await ann.post(path, data=data, headers=local), 400)
    assert (await ann.get(path, headers=local)).text.count("<button") == 3


async def test_a_webhook_that_is_not_taken_is_told(ann: httpx.AsyncClient) -> None:
    """Nobody listens at the sandbox's address here."""
    checkout = await opened(ann)
    local = {"host": "127.0.0.1:1"}
    pressed = await ann.post(f"/sandbox/checkout/{checkout}", data={"press": "pay"}, headers=local)
    assert pressed.status_code == 503
    assert "Not delivered" in pressed.text
    assert await state_of(ann, checkout) == "open"
