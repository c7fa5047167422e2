"""The sandbox's checkout page in a real browser: its buttons decide, and its webhooks are real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr
from redis import Redis

from deployments.payments import SANDBOX_SECRET
from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from tests import tools
from tests.api import ADMIN, running_ingress


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with tools.browser() as browser:
        yield browser


@pytest.fixture
def ingress(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Its URL. It sells by the sandbox, as under `up`."""
    Redis.from_url(redis_server.url).flushall()
    monkeypatch.setenv(SANDBOX_SECRET, "as-up-would-make-one")
    settings = StackSettings(
        redis_url=SecretStr(redis_server.url),
        data_dir=tmp_path,
        admin_key=SecretStr(ADMIN),
        payments_provider="sandbox",
    )
    with running_ingress(settings) as url:
        yield url


@pytest.fixture
def ann(ingress: str) -> Iterator[httpx.Client]:
    admin = {"authorization": f"Bearer {ADMIN}"}
    made = httpx.post(f"{ingress}/v1/admin/keys", json={"user": "ann"}, headers=admin)
    key = {"authorization": f"Bearer {made.json()['key']}"}
    with httpx.Client(base_url=ingress, headers=key) as client:
        yield client


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with chromium.new_page() as page:
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        assert complaints == [], "a policy that a page breaks is told there"


def opened(ann: httpx.Client, **fields: str) -> dict[str, Any]:
    answer = ann.post("/v1/credits/checkout", json={"pack": "extra-10", **fields})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def stands(ann: httpx.Client, checkout: dict[str, Any]) -> tuple[str, float]:
    """The checkout's state, and what its buyer may spend."""
    state = ann.get(f"/v1/credits/checkout/{checkout['id']}").json()["state"]
    return state, ann.get("/v1/credits").json()["balance"]


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def says(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_have_text(text)


def test_pay_grants_and_leads_on(ann: httpx.Client, page: Page, ingress: str) -> None:
    checkout = opened(ann)
    page.goto(checkout["url"])
    assert page.title() == "Pay with play money"
    shown = page.locator("dd").all_inner_texts()
    assert shown == ["10 extra generations", "40", "for 365 days", "4.00 usd"]
    says(page, "Nothing is paid yet.")
    press(page, "Pay")
    page.wait_for_url(f"{ingress}/checkout/paid")
    assert stands(ann, checkout) == ("paid", 40)
    page.goto(checkout["url"])
    says(page, "It is paid, and the credits are there.")
    assert page.get_by_role("button").count() == 0
    page.get_by_role("link", name="Go back").click()
    page.wait_for_url(f"{ingress}/checkout/paid")


def test_the_buyer_is_led_to_another_site(ann: httpx.Client, page: Page) -> None:
    """Browsers hold a form's redirects against the page's policy, too."""
    page.route("https://shop.example/**", _shop)
    checkout = opened(
        ann,
        success_url="https://shop.example/done?c={CHECKOUT_SESSION_ID}&x=<b>",
        cancel_url="https://shop.example/basket",
    )
    page.goto(checkout["url"])
    page.get_by_role("link", name="Cancel").click()
    page.wait_for_url("https://shop.example/basket")
    assert stands(ann, checkout) == ("open", 0)
    page.goto(checkout["url"])
    press(page, "Pay")
    page.wait_for_url(f"https://shop.example/done?c={checkout['id']}&x=*")
    assert stands(ann, checkout) == ("paid", 40)


def _shop(route: Any) -> None:
    route.fulfill(body="<!doctype html><title>A shop</title>", content_type="text/html")


def test_a_slow_payment_arrives_or_not(ann: httpx.Client, page: Page, ingress: str) -> None:
    checkout = opened(ann)
    page.goto(checkout["url"])
    press(page, "Pay later")
    page.wait_for_url(f"{ingress}/checkout/paid")
    assert stands(ann, checkout) == ("processing", 0)
    page.goto(checkout["url"])
    says(page, "The money is on its way.")
    press(page, "Decline")
    says(page, "The payment failed.")
    assert stands(ann, checkout) == ("failed", 0)
    press(page, "Pay")
    page.wait_for_url(f"{ingress}/checkout/paid")
    assert stands(ann, checkout) == ("paid", 40)
    checkout = opened(ann)
    page.goto(checkout["url"])
    press(page, "Pay later")
    page.wait_for_url(f"{ingress}/checkout/paid")
    page.goto(checkout["url"])
    press(page, "The money arrives")
    says(page, "It is paid, and the credits are there.")
    assert stands(ann, checkout) == ("paid", 80)


def test_paying_in_two_windows_grants_once(
    ann: httpx.Client, page: Page, chromium: Browser, ingress: str
) -> None:
    checkout = opened(ann)
    with chromium.new_page() as other:
        for window in (page, other):
            window.goto(checkout["url"])
        for window in (page, other):
            press(window, "Pay")
            window.wait_for_url(f"{ingress}/checkout/paid")
    assert stands(ann, checkout) == ("paid", 40)
    assert len(ann.get("/v1/credits").json()["grants"]) == 1


def test_a_page_of_another_site_presses_no_button(ann: httpx.Client, chromium: Browser) -> None:
    checkout = opened(ann)
    form = f"<form method=post action='{checkout['url']}'><button name=press value=pay>Win</button>"
    with chromium.new_page() as evil:
        evil.route(
            "https://evil.example/",
            lambda route: route.fulfill(body=form, content_type="text/html"),
        )
        evil.goto("https://evil.example/")
        with evil.expect_response(checkout["url"]) as answered:
            evil.get_by_role("button", name="Win").click()
    assert answered.value.status == 403
    assert stands(ann, checkout) == ("open", 0)
