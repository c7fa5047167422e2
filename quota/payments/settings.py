"""Who takes the money, from ``REELSERVE_PAYMENTS_…``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from quota.payments.provider import Provider
from quota.redis_ledger import Runner
from serving.plan.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class PaymentSettings(BaseSettings):
    """None of the secrets is ever shown, not even when it is wrong."""

    # An empty variable, as compose files write them, is none.
    model_config = SettingsConfigDict(
        env_prefix="REELSERVE_PAYMENTS_",
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


def open_provider(settings: PaymentSettings, cell: Runner, public_url: str) -> Provider | None:
    """Who takes the money; None if nobody does. ``public_url`` is what browsers reach us by; the
    sandbox keeps what it has to know in the ``cell``. :class:`ConfigError` names what is missing.
    """
    if settings.provider == "none":
        return None
    raise ConfigError(f"REELSERVE_PAYMENTS_PROVIDER={settings.provider} is not there yet")
