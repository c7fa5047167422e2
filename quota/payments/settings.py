"""Who takes the money, from ``REELSERVE_PAYMENTS_…``."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from quota.payments.provider import Provider
from quota.redis_ledger import Runner
from serving.plan.errors import ConfigError

PREFIX = "REELSERVE_PAYMENTS_"


class PaymentSettings(BaseSettings):
    """None of the secrets is ever shown, not even when it is wrong."""

    # An empty variable, as compose files write them, is none.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    provider: Literal["none", "stripe", "sandbox"] = Field("none", description="who takes money")
    stripe_secret_key: SecretStr | None = Field(None, description="sk_… or rk_…")
    stripe_webhook_secrets: Annotated[list[SecretStr], NoDecode] = Field(
        [], description="whsec_…; several, with commas, while one replaces another"
    )
    stripe_api_base: str | None = Field(None, description="instead of Stripe's own address")
    sandbox_secret: SecretStr | None = Field(None, description="made by `up`, never by hand")

    @field_validator("stripe_webhook_secrets", mode="before")
    @classmethod
    def _between_commas(cls, given: object) -> object:
        return [part.strip() for part in given.split(",")] if isinstance(given, str) else given

    @classmethod
    def load(cls) -> Self:
        """From the environment; :class:`ConfigError` names what is wrong there."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            name = str(first["loc"][0]).upper()
            raise ConfigError(f"{PREFIX}{name}: {first['msg']}") from None


def open_provider(settings: PaymentSettings, cell: Runner, public_url: str) -> Provider | None:
    """Who takes the money; None if nobody does. ``public_url`` is what browsers reach us by; the
    sandbox keeps what it has to know in the ``cell``.

    :class:`ConfigError` names what is missing or wrong, before anybody wants to pay.
    """
    # Stripe's library takes a moment to import, and most have no use for it.
    if settings.provider == "stripe":
        from quota.payments.stripe_checkout import StripeCheckout

        key = _required(settings.stripe_secret_key, "STRIPE_SECRET_KEY", "sk_", "rk_")
        given: Sequence[SecretStr | None] = settings.stripe_webhook_secrets or [None]
        hooks = [_required(each, "STRIPE_WEBHOOK_SECRETS", "whsec_") for each in given]
        return StripeCheckout(key, hooks, _base(settings.stripe_api_base))
    if settings.provider == "sandbox":
        from quota.payments.sandbox import Sandbox

        secret = settings.sandbox_secret and settings.sandbox_secret.get_secret_value().strip()
        if not secret or not is_loopback(public_url):
            raise ConfigError(
                "The payment sandbox gives credits for nothing, so it runs only where "
                "`reelserve up --payments sandbox` starts it, on a loopback address. "
                f"{PREFIX}PROVIDER must be stripe or none here."
            )
        return Sandbox(cell, secret, public_url)
    return None


def is_loopback(url: str) -> bool:
    """Whether only this machine can reach it."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _required(secret: SecretStr | None, name: str, *beginnings: str) -> str:
    text = "" if secret is None else secret.get_secret_value().strip()
    if not text.startswith(beginnings) or text in beginnings:
        raise ConfigError(
            f"{PREFIX}{name} must be set for Stripe and begin with {' or '.join(beginnings)}: "
            "docs/credits.md says where to find it"
        )
    return text


def _base(url: str | None) -> str | None:
    """The key goes there, so nobody may listen on the way."""
    if url is None or url.startswith("https://"):
        return url
    if url.startswith("http://") and is_loopback(url):
        return url
    raise ConfigError(
        f"{PREFIX}STRIPE_API_BASE must be an https:// address, or http:// on this machine"
    )
