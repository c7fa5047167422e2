"""The sandbox's checkout page: pays with play money, by a webhook like any provider's.

It is there only where the provider is the sandbox, and only for a browser on this machine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from html import escape
from http import HTTPStatus
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from quota.payments.provider import CheckoutPhase
from quota.payments.sandbox import Sandbox, Say, Session
from serving.api.pages import page
from serving.api.services import Services, ServicesDep
from serving.api.shop import SIGNATURE_HEADER, price_text
from serving.plan.errors import InvalidRequest, NotFound, NotPermitted
from serving.plan.price import MILLI

log = logging.getLogger(__name__)

FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
TIMEOUT_S = 30


def local_only(request: Request) -> None:
    """:class:`NotPermitted` unless it comes from this machine, and straight: somebody may have put
    a proxy before a loopback port, or reach a replica behind ours."""
    local = (
        request.client is not None
        and _is_loopback(request.client.host)
        and _is_loopback(_asked_for(request))
        and not any(name in request.headers for name in FORWARDED)
        # Another site's page, in a browser on this machine, may not press our buttons.
        and request.headers.get("origin") in (None, f"http://{request.headers.get('host')}")
    )
    if not local:
        raise NotPermitted(
            "The payment sandbox is for a browser on the machine it runs on, without a proxy "
            "between them.",
            code="sandbox_is_local",
        )


def _asked_for(request: Request) -> str | None:
    """The host that the request names."""
    try:
        return request.url.hostname
    except ValueError:  # it names none
        return None


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def sandbox_of(services: ServicesDep) -> Sandbox:
    """:class:`NotFound` where another provider, or none, takes the money."""
    if not isinstance(services.provider, Sandbox):
        raise NotFound("The payment sandbox is not on here.")
    return services.provider


SandboxDep = Annotated[Sandbox, Depends(sandbox_of)]
router = APIRouter(
    prefix="/sandbox",
    include_in_schema=False,
    dependencies=[Depends(sandbox_of), Depends(local_only)],
)

SAYS = {
    "pay": ("Pay", Say.COMPLETED),
    "later": ("Pay later", Say.PENDING),
    "arrive": ("The money arrives", Say.SUCCEEDED),
    "decline": ("Decline", Say.FAILED),
}
"""Buttons: what they are called, and what the webhook says then."""
BUTTONS: Mapping[CheckoutPhase, Sequence[str]] = {
    CheckoutPhase.OPEN: ("pay", "later", "decline"),
    CheckoutPhase.PROCESSING: ("arrive", "decline"),
    CheckoutPhase.FAILED: ("pay", "later"),
    CheckoutPhase.EXPIRED: (),
    CheckoutPhase.PAID: (),
}
"""Those that are shown. Another may be pressed, in a window that stood open meanwhile: as with any
provider, what is paid stays paid and is granted once."""
STANDS = {
    CheckoutPhase.OPEN: "Nothing is paid yet.",
    CheckoutPhase.PROCESSING: "The money is on its way.",
    CheckoutPhase.FAILED: "The payment failed.",
    CheckoutPhase.EXPIRED: "Nobody paid in time.",
    CheckoutPhase.PAID: "It is paid, and the credits are there.",
}


@router.get("/checkout/{checkout_id}")
async def show(checkout_id: str, services: ServicesDep, sandbox: SandboxDep) -> HTMLResponse:
    """What is bought, and buttons that decide whether it is paid."""
    session, phase = await _session(services, sandbox, checkout_id)
    bought = session.purchase
    days = bought.expires_days
    facts = {
        "Pack": bought.title,
        "Credits": f"{bought.credits / MILLI:.15g}",
        "Valid": "for ever" if days is None else f"for {days} days",
        "Price": price_text(bought.price_minor, bought.currency),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    buttons = "".join(
        f'<button name="press" value="{name}">{SAYS[name][0]}</button>' for name in BUTTONS[phase]
    )
    form = f'<form method="post">{buttons}</form>' if buttons else ""
    back = session.success_url if phase is CheckoutPhase.PAID else session.cancel_url
    what = "Go back" if phase is CheckoutPhase.PAID else "Cancel and go back"
    return page(
        "Pay with play money",
        "<p>This is a sandbox: no money is taken. Each button sends a signed webhook, as a payment "
        f'provider would.</p>\n<dl>{listed}</dl>\n<p role="status">{STANDS[phase]}</p>\n{form}\n'
        f'<p><a href="{escape(back)}">{what}</a></p>',
        form_targets=(_origin(session.success_url),),
    )


@router.post("/checkout/{checkout_id}")
async def press(
    checkout_id: str,
    services: ServicesDep,
    sandbox: SandboxDep,
    button: Annotated[str, Form(alias="press")],
) -> Response:
    """Send what the button stands for, and lead the buyer on."""
    session, _ = await _session(services, sandbox, checkout_id)
    if button not in SAYS:
        raise InvalidRequest(f"There is no such button; there are {', '.join(SAYS)}.")
    _, say = SAYS[button]
    if not await _deliver(sandbox, *await sandbox.webhook(checkout_id, say)):
        return page(
            "Not delivered",
            "<p>The webhook was not taken. A provider would send it again later; here, you do.</p>"
            '<p><a href="">Back to the page</a></p>',
            status=HTTPStatus.SERVICE_UNAVAILABLE,
        )
    leave = say in (Say.COMPLETED, Say.PENDING)
    return RedirectResponse(
        session.success_url if leave else str(checkout_id), status_code=HTTPStatus.SEE_OTHER
    )


async def _session(
    services: Services, sandbox: Sandbox, checkout_id: str
) -> tuple[Session, CheckoutPhase]:
    session = await sandbox.session(checkout_id)
    if session is None:
        raise NotFound("There is no such checkout, or not any more.", code="checkout_not_found")
    known = await services.payments.checkout(checkout_id)
    return session, known.state if known else CheckoutPhase.OPEN


async def _deliver(sandbox: Sandbox, body: bytes, signature: str) -> bool:
    """Whether our own webhook took it: over HTTP, as from anywhere else."""
    headers = {SIGNATURE_HEADER: signature, "content-type": "application/json"}
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            answer = await http.post(sandbox.webhook_url, content=body, headers=headers)
    except httpx.HTTPError as error:
        log.warning("the sandbox's webhook: %s: %s", type(error).__name__, error)
        return False
    if not answer.is_success:
        log.warning("the sandbox's webhook: %s %s", answer.status_code, answer.text[:200])
    return answer.is_success


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
