"""Small pages for a browser, without anything from elsewhere, and where a buyer comes back to."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from html import escape
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from serving.api.services import Services

router = APIRouter(include_in_schema=False)

STYLE = """
body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 30rem; margin: 4rem auto; padding: 0 1rem;
  color: #222; background: #fff }
h1 { font-size: 1.4rem }
dt { color: #595959 } dd { margin: 0 0 .5rem; font-weight: 600 }
button { font: inherit; padding: .5rem 1rem; margin: 0 .5rem .5rem 0; cursor: pointer }
button:first-of-type { font-weight: 700 }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #111 } dt { color: #aaa } a { color: #8bf }
}
"""
STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()


def page(
    title: str, body: str, *, status: int = HTTPStatus.OK, form_targets: tuple[str, ...] = ()
) -> HTMLResponse:
    """A page of ``body``, which is HTML already. A form of it goes to us, and from there to
    ``form_targets``, which are origins; without any there is none."""
    forms = " ".join(("'self'", *form_targets)) if form_targets else "'none'"
    headers = {
        "cache-control": "no-store",
        "content-security-policy": (
            f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; form-action {forms}; "
            "base-uri 'none'; frame-ancestors 'none'"
        ),
        # Not no-referrer: a browser would not say then which page a form is of.
        "referrer-policy": "same-origin",
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n"
        "</main>\n</body>\n</html>\n",
        status_code=status,
        headers=headers,
    )


@router.get("/checkout/paid")
async def paid() -> HTMLResponse:
    """Where a buyer comes back to who was sent nowhere else."""
    text = "The credits are there as soon as the payment is confirmed, which mostly takes seconds."
    return page("Thank you", f"<p>Your purchase is in. {text}</p><p>You can close this page.</p>")


@router.get("/checkout/cancelled")
async def cancelled() -> HTMLResponse:
    """Where a buyer comes back to who thought better of it."""
    text = "Nothing was bought, and nothing was charged."
    return page("Cancelled", f"<p>{text}</p><p>You can close this page.</p>")


def page_url(request: Request, services: Services, name: str) -> str:
    """The address of one of these pages, as a browser reaches us."""
    base = (services.settings.public_url or str(request.base_url)).rstrip("/")
    return f"{base}{request.app.url_path_for(name)}"
