"""Stripe's API as far as a checkout needs it, over real HTTP on a free port.

It takes nothing that Stripe would not take, as https://docs.stripe.com/api/checkout/sessions/create,
/api/errors and /api/idempotent_requests have it, and says so in Stripe's words.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY = "sk_test_" + "1a2B3c4D" * 12
SESSIONS = "/v1/checkout/sessions"
LEAST_MINOR = {"usd": 50, "eur": 50, "gbp": 30, "jpy": 50}
"""https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts"""


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, kind: str, message: str, **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": kind, "message": message, **more}}


def _invalid(code: str, param: str, message: str) -> Refused:
    return Refused(400, "invalid_request_error", message, code=code, param=param)


Check = Callable[[Any, str], Any]


def text(longest: int) -> Check:
    def check(given: Any, param: str) -> str:
        if not isinstance(given, str):
            raise _invalid("parameter_invalid_string_empty", param, "Invalid string")
        if not given:
            raise _invalid("parameter_invalid_empty", param, f"You passed an empty string: {param}")
        if len(given) > longest:
            raise _invalid("parameter_invalid_string", param, f"At most {longest} characters")
        return given

    return check


def one_of(*allowed: str) -> Check:
    def check(given: Any, param: str) -> Any:
        if given not in allowed:
            raise _invalid("parameter_invalid", param, f"Invalid {param}: must be {allowed}")
        return given

    return check


def integer(least: int, most: int) -> Check:
    def check(given: Any, param: str) -> int:
        if not isinstance(given, str) or not re.fullmatch(r"-?[0-9]+", given):
            raise _invalid("parameter_invalid_integer", param, f"Invalid integer: {given}")
        if not least <= int(given) <= most:
            raise _invalid("parameter_invalid_integer", param, f"From {least} to {most}: {given}")
        return int(given)

    return check


def url(given: Any, param: str) -> str:
    parts = urlsplit(str(text(5000)(given, param)))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise _invalid("url_invalid", param, "Not a valid URL")
    return str(given)


def metadata(given: Any, param: str) -> dict[str, str]:
    if not isinstance(given, dict) or len(given) > 50:
        raise _invalid("parameter_invalid", param, "Invalid metadata")
    for name, value in given.items():
        if len(name) > 40 or "[" in name or "]" in name:
            raise _invalid("metadata_key", param, f"Metadata keys have up to 40 characters: {name}")
        text(500)(value, f"{param}[{name}]")
    return given


def fields(required: tuple[str, ...] = (), **known: Check) -> Check:
    def check(given: Any, param: str) -> dict[str, Any]:
        def named(name: str) -> str:
            return f"{param}[{name}]" if param else name

        if not isinstance(given, dict):
            raise _invalid("parameter_invalid", param, "Invalid object")
        for name in given:
            if name not in known:
                message = f"Received unknown parameter: {named(name)}"
                raise _invalid("parameter_unknown", named(name), message)
        for name in required:
            if name not in given:
                message = f"Missing required param: {named(name)}."
                raise _invalid("parameter_missing", named(name), message)
        return {name: known[name](value, named(name)) for name, value in given.items()}

    return check


def items(each: Check) -> Check:
    def check(given: Any, param: str) -> list[Any]:
        if not isinstance(given, dict) or sorted(given) != [str(n) for n in range(len(given))]:
            raise _invalid("parameter_invalid", param, "Invalid array")
        return [each(given[str(n)], f"{param}[{n}]") for n in range(len(given))]

    return check


SESSION = fields(
    ("mode", "line_items", "success_url"),
    mode=one_of("payment", "setup", "subscription"),
    line_items=items(
        fields(
            ("price_data", "quantity"),
            quantity=integer(1, 999_999),
            price_data=fields(
                ("currency", "unit_amount", "product_data"),
                currency=one_of(*LEAST_MINOR),
                unit_amount=integer(0, 99_999_999),
                product_data=fields(("name",), name=text(250), description=text(5000)),
            ),
        )
    ),
    client_reference_id=text(200),
    metadata=metadata,
    payment_intent_data=fields(metadata=metadata, description=text(1000)),
    success_url=url,
    cancel_url=url,
)


def nested(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """``a[b][0]=c`` as ``{"a": {"b": {"0": "c"}}}``."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if not re.fullmatch(r"[^\[\]]+(\[[^\[\]]+\])*", name):
            raise _invalid("parameter_unknown", name, f"Received unknown parameter: {name}")
        *ways, last = re.findall(r"[^\[\]]+", name)
        place = made
        for way in ways:
            place = place.setdefault(way, {})
        if last in place:
            raise _invalid("parameter_invalid", name, f"Given twice: {name}")
        place[last] = value
    return made


@dataclass
class StripeServer:
    """``fails`` is what becomes of the next requests: a status, ``"lost"`` (it is done, and the
    answer never comes), or ``"silent"`` (nothing is done, and the connection stays open)."""

    url: str = ""
    key: str = KEY
    fails: list[int | str] = field(default_factory=list)
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    answered: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def respond(
        self, method: str, path: str, headers: Mapping[str, str], body: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers."""
        try:
            self._authenticate(headers)
            if (method, path) != ("POST", SESSIONS):
                message = f"Unrecognized request URL ({method}: {path})."
                raise Refused(404, "invalid_request_error", message)
            if headers.get("Content-Type") != "application/x-www-form-urlencoded":
                raise Refused(400, "invalid_request_error", "Invalid request: not a form")
            return self._once(headers.get("Idempotency-Key", ""), body)
        except Refused as refused:
            return refused.status, refused.body, {}

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        given = headers.get("Authorization", "")
        if given != f"Bearer {self.key}":
            # Stripe hides most of the key; this one repeats it, so that a log that holds it shows.
            message = f"Invalid API Key provided: {given.removeprefix('Bearer ')}"
            raise Refused(401, "invalid_request_error", message)
        if not re.fullmatch(r"20\d\d-\d\d-\d\d(\.[a-z]+)?", headers.get("Stripe-Version", "")):
            raise Refused(400, "invalid_request_error", "Invalid Stripe API version")

    def _once(self, key: str, body: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        if not 1 <= len(key) <= 255:
            raise Refused(400, "invalid_request_error", "Invalid Idempotency-Key")
        if key in self.answered:
            was, answer = self.answered[key]
            if was != body:
                raise Refused(
                    400,
                    "idempotency_error",
                    "Keys for idempotent requests can only be used with the same parameters they "
                    f"were first used with. Try using a key other than '{key}'.",
                )
            return 200, answer, {"Idempotent-Replayed": "true"}
        pairs = parse_qsl(body, keep_blank_values=True, strict_parsing=True, encoding="utf-8")
        session = self._create(SESSION(nested(pairs), ""))
        self.answered[key] = body, session
        return 200, session, {}

    def _create(self, params: dict[str, Any]) -> dict[str, Any]:
        totals = {each["price_data"]["currency"]: 0 for each in params["line_items"]}
        for each in params["line_items"]:
            price = each["price_data"]
            totals[price["currency"]] += price["unit_amount"] * each["quantity"]
        if len(totals) != 1:
            raise _invalid("parameter_invalid", "line_items", "All must have the same currency")
        ((currency, total),) = totals.items()
        if total < LEAST_MINOR[currency]:
            least = f"The Checkout Session's total amount must convert to at least {currency}"
            raise _invalid("amount_too_small", "line_items", least)
        session_id = f"cs_test_{secrets.token_hex(28)}"
        session = {
            "id": session_id,
            "object": "checkout.session",
            "amount_total": total,
            "currency": currency,
            "client_reference_id": params.get("client_reference_id"),
            "livemode": False,
            "metadata": params.get("metadata", {}),
            "mode": params["mode"],
            "payment_intent": None,
            "payment_status": "unpaid",
            "status": "open",
            "success_url": params["success_url"],
            "cancel_url": params.get("cancel_url"),
            "url": f"https://checkout.stripe.com/c/pay/{session_id}",
        }
        # What the charge will carry is said of the payment intent.
        carried = params.get("payment_intent_data", {}).get("metadata", {})
        self.sessions[session_id] = {**session, "payment_intent_metadata": carried}
        return session


FAILURES = {
    401: ("invalid_request_error", "Invalid API Key provided: {key}"),
    403: ("invalid_request_error", "The provided key '{key}' does not have access."),
    429: ("rate_limit_error", "Request rate limit exceeded."),
    500: ("api_error", "An unknown error occurred."),
}


def _handler(server: StripeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            headers = {name.title(): value for name, value in self.headers.items()}
            server.requests.append((self.command, self.path, headers))
            how = server.fails.pop(0) if server.fails else 0
            if how == "silent":
                server.over.wait(60)
                self.close_connection = True
                return
            if isinstance(how, int) and how:
                kind, message = FAILURES[how]
                error = {"type": kind, "message": message.format(key=server.key)}
                status, answer, more = how, {"error": error}, dict[str, str]()
            else:
                status, answer, more = server.respond(self.command, self.path, headers, body)
            if how == "lost":
                self.close_connection = True
                return
            told = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Request-Id": "req_test", **more}.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def stripe_server() -> Iterator[StripeServer]:
    """While it runs; ``url`` is where."""
    server = StripeServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        http.daemon_threads = True
        http.block_on_close = False
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()
            thread.join()
