"""Who takes a stack's money, and that the sandbox never does where money counts."""

from __future__ import annotations

from deployments.settings import StackSettings
from quota.payments.provider import Provider
from quota.payments.settings import PaymentSettings, open_provider
from quota.redis_ledger import Runner
from serving.plan.errors import ConfigError

SANDBOX_SECRET = "REELSERVE_PAYMENTS_SANDBOX_SECRET"
"""How `up` hands it to the ingress. Nobody else makes one."""


def check_sandbox(settings: StackSettings) -> None:
    """:class:`ConfigError` if these are not the settings of a stack that may have the sandbox:
    one that nobody but this machine reaches."""
    if settings.payments_provider == "sandbox" and not settings.on_loopback:
        raise ConfigError(
            f"the payment sandbox gives credits for nothing and this stack listens on "
            f"{settings.host}, where others reach it: use --host 127.0.0.1, or another "
            "--payments (REELSERVE_PAYMENTS_PROVIDER)"
        )


def open_shop(
    settings: StackSettings, cell: Runner, public_url: str | None = None
) -> Provider | None:
    """Who takes the money; None if nobody does. ``public_url`` is what browsers reach us by, if not
    by the stack's own address. :class:`ConfigError` says what is missing."""
    check_sandbox(settings)
    named = {"provider": settings.payments_provider}
    payments = PaymentSettings.load().model_copy(update=named)
    if payments.provider == "sandbox":
        public_url = settings.url  # its pages are for a browser on this machine
    return open_provider(payments, cell, public_url or settings.url)
