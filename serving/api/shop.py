"""Buying credits: packs, checkouts, and the webhooks of the payment provider.

Nothing is granted here but by a webhook that the provider signed; what a browser says of a payment
counts for nothing.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from quota.payments.provider import CheckoutPhase, Provider, Purchase
from serving.api.auth import GenerateDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.idempotency import KEY_DOCS, key_of
from serving.api.pages import page_url
from serving.api.schemas import Text
from serving.api.services import Services, ServicesDep
from serving.api.usage import MemberDep
from serving.plan.errors import InvalidRequest, NotFound, NotOffered, RateLimited
from serving.plan.price import MILLI

router = APIRouter(prefix="/v1/credits", tags=["usage"])
webhooks = APIRouter(prefix="/v1/payments", tags=["operation"])

SIGNATURE_HEADER = "stripe-signature"
"""Of every provider's webhooks: the sandbox signs as Stripe does."""
HOUR_S = 3600
URL = re.compile(r"[!-~]{1,2000}")
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
NO_MINOR_UNIT = frozenset(
    "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf".split()  # noqa: SIM905
)
THREE_DECIMALS = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
"""Minor units as Stripe counts them: https://docs.stripe.com/currencies."""


def price_text(minor: int, currency: str) -> str:
    """``4.00 usd``, ``400 jpy``."""
    decimals = 0 if currency in NO_MINOR_UNIT else 3 if currency in THREE_DECIMALS else 2
    whole, part = divmod(minor, 10**decimals)
    amount = f"{whole}.{part:0{decimals}}" if decimals else f"{whole}"
    return f"{amount} {currency}"


def _web_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = HOST.fullmatch(parts.hostname or "")
        good = parts.scheme in ("http", "https") and host is not None and parts.port != 0
    except ValueError:
        good = False
    if not good or not URL.fullmatch(url):
        raise ValueError("must be an http or https URL of at most 2000 characters")
    return url


WebUrl = Annotated[Text, AfterValidator(_web_url)]


class Offer(BaseModel):
    """So many credits, for a price."""

    id: str
    title: str
    credits: float
    price: str = Field(description="for people", examples=["4.00 usd"])
    price_minor: int = Field(description="in the currency's minor unit, such as cents")
    currency: str = Field(description="ISO 4217, in lower case")
    expires_days: int | None = Field(description="after the payment; null: never")


class CreditPack(Offer):
    """Credits that are bought together."""

    object: Literal["credit_pack"] = "credit_pack"


class PackList(BaseModel):
    """``GET /v1/credits/packs``."""

    object: Literal["list"] = "list"
    data: list[CreditPack]
    provider: str | None = Field(description="who takes the money; null: nothing can be bought")


class CheckoutCreate(BaseModel):
    """``POST /v1/credits/checkout``."""

    model_config = ConfigDict(extra="forbid")

    pack: Text = Field(description="an id of `/v1/credits/packs`")
    success_url: WebUrl | None = Field(
        None,
        description="where the buyer's browser goes after paying; a page of ours if absent. "
        "{CHECKOUT_SESSION_ID} in it becomes the checkout's id",
    )
    cancel_url: WebUrl | None = Field(
        None, description="where it goes if they think better of it; a page of ours if absent"
    )


class Checkout(Offer):
    """A page of the payment provider where a pack is paid."""

    object: Literal["checkout"] = "checkout"
    url: str = Field(description="send the buyer's browser there")
    pack: str


class CheckoutStatus(BaseModel):
    """What became of a checkout."""

    id: str
    object: Literal["checkout"] = "checkout"
    pack: str
    credits: float
    state: CheckoutPhase = Field(
        description="open; processing: the provider waits for the money; paid; failed; expired"
    )
    grant: str | None = Field(description="the ref of its credits, once they are there")


@router.get("/packs")
async def packs(caller: MemberDep, services: ServicesDep) -> PackList:
    """What there is to buy."""
    current, provider = services.packs.current, services.provider
    offers = [
        CreditPack(
            id=name,
            title=pack.title,
            credits=pack.credits,
            price=price_text(pack.price_minor, current.currency),
            price_minor=pack.price_minor,
            currency=current.currency,
            expires_days=pack.expires_days,
        )
        for name, pack in current.packs.items()
    ]
    return PackList(data=offers, provider=provider.name if provider else None)


@router.post(
    "/checkout",
    openapi_extra={**body_docs(CheckoutCreate), "parameters": [KEY_DOCS]},
)
async def checkout(request: Request, caller: GenerateDep, services: ServicesDep) -> Checkout:
    """Begin to buy a pack: send the buyer's browser to the ``url``.

    The credits are there once the provider says that they are paid, which
    `GET /v1/credits/checkout/{id}` shows. Under an `Idempotency-Key` the same request may be sent
    again for a day: it opens no second checkout.
    """
    provider = _provider(services)
    fields = validate(CheckoutCreate, await read_fields(request))
    key = key_of(request)
    purchase = await _purchase(services, caller.user, fields.pack)
    await _count(services, caller.user)
    opened = await provider.checkout(
        purchase,
        success_url=fields.success_url or page_url(request, services, "paid"),
        cancel_url=fields.cancel_url or page_url(request, services, "cancelled"),
        idempotency_key=key or secrets.token_hex(32),
    )
    await services.payments.opened(provider.name, opened, purchase)
    return Checkout(
        id=opened.id,
        url=opened.url,
        pack=purchase.pack,
        title=purchase.title,
        credits=purchase.credits / MILLI,
        price=price_text(purchase.price_minor, purchase.currency),
        price_minor=purchase.price_minor,
        currency=purchase.currency,
        expires_days=purchase.expires_days,
    )


@router.get("/checkout/{checkout_id}")
async def checkout_status(
    checkout_id: str, caller: MemberDep, services: ServicesDep
) -> CheckoutStatus:
    """What became of one of the caller's checkouts. It is known for 30 days."""
    found = await services.payments.checkout(checkout_id)
    if found is None or found.user != caller.user:
        raise NotFound("You have no such checkout.", code="checkout_not_found")
    return CheckoutStatus(
        id=found.id,
        pack=found.pack,
        credits=found.credits / MILLI,
        state=found.state,
        grant=found.grant,
    )


WEBHOOK_DOCS = {
    "requestBody": {
        "required": True,
        "description": "an event, as the provider sends and signs it",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    "parameters": [
        {
            "name": "Stripe-Signature",
            "in": "header",
            "required": True,
            "schema": {"type": "string"},
            "description": "the provider's signature of the body as it is, with its time",
        }
    ],
}
"""For OpenAPI: the body is read raw, since the signature is of its bytes."""


@webhooks.post("/{provider}/webhook", openapi_extra=WEBHOOK_DOCS)
async def webhook(provider: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """What the payment provider says. It needs no key: its signature says who it is from.

    Any event may come again, late, or before an earlier one. 503, with nothing done, while Redis is
    away: the provider sends it again.
    """
    ours = services.provider
    if ours is None or ours.name != provider:
        raise NotFound("This provider is not set up here.", code="unknown_provider")
    event = ours.read(await request.body(), request.headers.get(SIGNATURE_HEADER))
    if event is None:
        return {"object": "webhook", "outcome": "ignored"}
    applied = await services.payments.apply(ours.name, event)
    return {"object": "webhook", "outcome": applied.outcome}


def _provider(services: Services) -> Provider:
    if services.provider is None:
        raise NotOffered(
            "Nothing can be bought here: no payment provider is set up. The operator chooses one "
            "with REELSERVE_PAYMENTS_PROVIDER.",
            code="payments_not_configured",
        )
    return services.provider


async def _purchase(services: Services, user: str, name: str) -> Purchase:
    current = services.packs.current
    pack = current.packs.get(name)
    if pack is None:
        known = ", ".join(current.packs) or "none"
        raise InvalidRequest(
            f"There is no pack '{name[:64]}'. There are: {known}.",
            code="unknown_pack",
            param="pack",
        )
    return Purchase(
        cell_id=await services.payments.cell_id(),
        user=user,
        pack=name,
        title=pack.title,
        credits=pack.milli_credits,
        expires_days=pack.expires_days,
        price_minor=pack.price_minor,
        currency=current.currency,
    )


async def _count(services: Services, user: str) -> None:
    """:class:`RateLimited` for who opens checkouts all the time: each is kept for a month, here
    and at the provider."""
    cell, most = services.payments.cell, services.settings.checkouts_per_hour
    key = cell.key("checkouts", user)
    async with cell.answers(), cell.redis.pipeline(transaction=True) as pipe:
        pipe.set(key, 0, ex=HOUR_S, nx=True)
        pipe.incr(key)
        pipe.ttl(key)
        _, count, left_s = await pipe.execute()
    if count > most:
        raise RateLimited(
            f"You have opened {most} checkouts within an hour. Pay one of those, or wait.",
            reason="checkouts",
            retry_after_s=max(1, left_s),
        )
