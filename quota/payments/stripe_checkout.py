"""Stripe, by way of its own library: a Checkout session for each purchase, and its webhooks.

https://docs.stripe.com/api/checkout/sessions/create, https://docs.stripe.com/webhooks
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import NoReturn

import stripe
from stripe.params.checkout import SessionCreateParams

from quota.payments.provider import Checkout, Event, Purchase
from quota.payments.stripe_events import metadata, read_event, verify
from serving.plan.errors import IdempotencyMismatch, InvalidRequest, ServiceUnavailable

log = logging.getLogger(__name__)

TIMEOUT_S = 10
RETRIES = 2
"""Behind the first attempt, a second apart or less: somebody waits for the page."""

stripe.enable_telemetry = False
# What it tells at its other levels holds what it sends.
logging.getLogger("stripe").setLevel(logging.WARNING)


class StripeCheckout:
    """:class:`quota.payments.provider.Provider`. ``webhook_secrets``: any of them will do."""

    name = "stripe"

    def __init__(
        self, secret_key: str, webhook_secrets: Sequence[str], api_base: str | None = None
    ) -> None:
        self._live = "_live_" in secret_key
        self._webhook_secrets = list(webhook_secrets)
        self._http = stripe.HTTPXClient(timeout=TIMEOUT_S)
        self._client = stripe.StripeClient(
            secret_key,
            base_addresses={"api": api_base} if api_base else None,
            max_network_retries=RETRIES,
            http_client=self._http,
        )

    async def checkout(
        self, purchase: Purchase, *, success_url: str, cancel_url: str, idempotency_key: str
    ) -> Checkout:
        """As the protocol says. The same key for something else is an
        :class:`IdempotencyMismatch`; an address Stripe does not take, :class:`InvalidRequest`."""
        ours = metadata(purchase)
        params: SessionCreateParams = {
            "mode": "payment",
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": purchase.currency,
                        "unit_amount": purchase.price_minor,
                        "product_data": {"name": purchase.title},
                    },
                }
            ],
            "client_reference_id": purchase.user,
            "metadata": ours,
            "payment_intent_data": {"metadata": ours},
            "success_url": success_url,
            "cancel_url": cancel_url,
        }
        key = scoped_key(purchase, idempotency_key)
        try:
            session = await self._client.v1.checkout.sessions.create_async(
                params, {"idempotency_key": key}
            )
        except stripe.StripeError as error:
            _refuse(error)
        if not session.url:
            raise ServiceUnavailable("The payment provider gave no page. Try again shortly.")
        return Checkout(session.id, session.url)

    def read(self, body: bytes, signature: str | None) -> Event | None:
        verify(body, signature, self._webhook_secrets)
        return read_event(body, live=self._live)

    async def aclose(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]


def scoped_key(purchase: Purchase, key: str) -> str:
    """A caller's key, for a provider that knows neither cells nor users."""
    return sha256(f"{purchase.cell_id} {purchase.user} {key}".encode()).hexdigest()


def _refuse(error: stripe.StripeError) -> NoReturn:
    """In our words. The operator reads Stripe's in the log, but where they may hold a key."""
    request = error.request_id or "none"
    match error:
        case stripe.IdempotencyError():
            raise IdempotencyMismatch(
                "This Idempotency-Key was used for another purchase, or at another price. "
                "Use a new one."
            ) from None
        case stripe.InvalidRequestError(param="success_url" | "cancel_url" as param):
            raise InvalidRequest(f"'{param}': {error.user_message}", param=param) from None
        case stripe.AuthenticationError() | stripe.PermissionError():
            log.error(
                "Stripe refuses REELSERVE_PAYMENTS_STRIPE_SECRET_KEY with status %s (request %s)",
                error.http_status,
                request,
            )
            raise ServiceUnavailable(
                "The payment provider does not accept our key. Tell the operator.",
                code="payment_provider_refused",
            ) from None
        case stripe.InvalidRequestError() | stripe.CardError():
            log.error("Stripe refuses a purchase (request %s): %s", request, error.user_message)
            raise ServiceUnavailable(
                "The payment provider does not accept this purchase. Tell the operator.",
                code="payment_provider_refused",
            ) from None
        case stripe.RateLimitError():
            why = "has too much to do"
        case _:
            why = "does not answer as it should"
    log.warning(
        "Stripe: %s, status %s (request %s)", type(error).__name__, error.http_status, request
    )
    raise ServiceUnavailable(
        f"The payment provider {why}. Nothing was paid; try again shortly.",
        code="payment_provider_unavailable",
    ) from None
