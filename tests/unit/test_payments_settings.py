"""Who takes the money, and what stops a start where that would go wrong."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from quota.payments.provider import Provider
from quota.payments.sandbox import Sandbox
from quota.payments.settings import PaymentSettings, is_loopback, open_provider
from quota.payments.stripe_checkout import StripeCheckout
from serving.jobs import Cell
from serving.plan.errors import ConfigError

HERE, THERE = "http://127.0.0.1:8000", "https://video.example.com"
STRIPE = {
    "PROVIDER": "stripe",
    "STRIPE_SECRET_KEY": "sk_test_key",
    "STRIPE_WEBHOOK_SECRETS": "whsec_one",
}
SANDBOX = {"PROVIDER": "sandbox", "SANDBOX_SECRET": "made by up"}


def opened(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], public_url: str = HERE
) -> Provider | None:
    for name, value in given.items():
        monkeypatch.setenv(f"REELSERVE_PAYMENTS_{name}", value)
    # Opening one asks Redis nothing.
    return open_provider(PaymentSettings.load(), Cell(Redis()), public_url)


@pytest.mark.parametrize("given", [{}, {"PROVIDER": ""}, {"PROVIDER": "none"}])
def test_nobody_takes_money_unless_asked_to(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    assert opened(monkeypatch, given) is None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"STRIPE_SECRET_KEY": "rk_live_key"},
        {"STRIPE_WEBHOOK_SECRETS": "whsec_one, whsec_two"},
        {"STRIPE_API_BASE": "https://stripe.example.com"},
        {"STRIPE_API_BASE": "http://localhost:12111"},
        {"STRIPE_API_BASE": ""},
    ],
)
def test_stripe_opens_with_a_key_and_a_secret(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    assert isinstance(opened(monkeypatch, STRIPE | more, THERE), StripeCheckout)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"STRIPE_SECRET_KEY": ""}, "STRIPE_SECRET_KEY must be set for Stripe and begin with sk_"),
        ({"STRIPE_SECRET_KEY": "sk_"}, "STRIPE_SECRET_KEY must be set"),
        ({"STRIPE_SECRET_KEY": "pk_live_key"}, "STRIPE_SECRET_KEY must be set"),
        ({"STRIPE_WEBHOOK_SECRETS": ""}, "STRIPE_WEBHOOK_SECRETS must be set for Stripe and beg"),
        ({"STRIPE_WEBHOOK_SECRETS": "whsec_a,"}, "STRIPE_WEBHOOK_SECRETS must be set"),
        ({"STRIPE_WEBHOOK_SECRETS": "sk_test_key"}, "STRIPE_WEBHOOK_SECRETS must be set"),
        ({"STRIPE_API_BASE": "http://stripe.example.com"}, "STRIPE_API_BASE must be an https://"),
        ({"STRIPE_API_BASE": "stripe.example.com"}, "STRIPE_API_BASE must be an https://"),
    ],
)
def test_stripe_without_what_it_needs_is_no_start(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(monkeypatch, STRIPE | more)
    assert caught.value.message.startswith(f"REELSERVE_PAYMENTS_{told}")
    for secret in more.values():
        assert "_live_" not in secret or secret not in caught.value.message


def test_the_sandbox_opens_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(opened(monkeypatch, SANDBOX), Sandbox)
    for url in (THERE, "http://0.0.0.0:8000", "http://192.168.1.7", "http://[::]:8000", ""):
        with pytest.raises(ConfigError, match="The payment sandbox gives credits for nothing"):
            opened(monkeypatch, SANDBOX, url)


@pytest.mark.parametrize("secret", ["", " "])
def test_the_sandbox_needs_a_secret_that_only_up_makes(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    with pytest.raises(ConfigError, match="The payment sandbox gives credits for nothing"):
        opened(monkeypatch, SANDBOX | {"SANDBOX_SECRET": secret})


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.9.1", True),
        ("http://[::1]:8000/x", True),
        ("http://localhost", True),
        ("http://LOCALHOST:1", True),
        ("http://127.0.0.1.example.com", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1@example.com", False),
        ("http://2130706433", False),
        ("http://10.0.0.1", False),
        ("127.0.0.1:8000", False),
        ("", False),
    ],
)
def test_only_a_loopback_address_is_this_machine(url: str, is_here: bool) -> None:
    assert is_loopback(url) is is_here


def test_no_mistake_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STRIPE.items():
        monkeypatch.setenv(f"REELSERVE_PAYMENTS_{name}", value)
    settings = PaymentSettings.load()
    assert "sk_test_key" not in repr(settings) + str(settings.model_dump())
    assert "whsec_one" not in repr(settings) + str(settings.model_dump())

    monkeypatch.setenv("REELSERVE_PAYMENTS_PROVIDER", "sk_test_key in the wrong place")
    with pytest.raises(ConfigError) as caught:
        PaymentSettings.load()
    said = "REELSERVE_PAYMENTS_PROVIDER: Input should be 'none', 'stripe' or 'sandbox'"
    assert caught.value.message == said
