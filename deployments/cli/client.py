"""Requests to Reelserve's API, with errors a command can show.

Nothing is sent twice by itself. :func:`patiently` repeats what may be repeated: asking for a
job's state, downloading its clip, and submitting one under an idempotency key.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote

import httpx

from deployments.cli.errors import ApiError, CliError, ConnectionLost, MissingKey, Unreachable

URL_DEFAULT = "http://127.0.0.1:8000"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
TIMEOUT = httpx.Timeout(30, connect=5)
TRANSIENT_STATUSES = frozenset({429, 502, 503, 504})

PATIENCE_S = 60.0
RETRY_MIN_S, RETRY_MAX_S = 0.25, 5.0
RETRY_AFTER_MAX_S = 30.0

Params = Mapping[str, str | int | None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """A JSON answer, and how long its server asks us to wait before the next look."""

    body: dict[str, Any]
    poll_after_s: float | None


class Client:
    """One command's connection. Use :meth:`as_user` or :meth:`as_admin`, in a ``with``."""

    def __init__(self, key: str) -> None:
        self.url = _url()
        host = httpx.URL(self.url).host
        self._http = httpx.Client(
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT,
            # A proxy meant for the internet cannot reach this machine's loopback interface.
            trust_env=host not in LOOPBACK,
        )

    @classmethod
    def as_user(cls) -> Self:
        """Speaks with REELSERVE_API_KEY; :class:`MissingKey` without it."""
        return cls(
            _key(
                "REELSERVE_API_KEY",
                "`reelserve up` prints a key when it is ready; "
                "an operator makes one with `reelserve keys create --user NAME`.",
            )
        )

    @classmethod
    def as_admin(cls) -> Self:
        """Speaks with REELSERVE_ADMIN_KEY; :class:`MissingKey` without it."""
        return cls(
            _key(
                "REELSERVE_ADMIN_KEY",
                "`reelserve up` prints the admin key the first time it starts.",
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, *path: str, params: Params | None = None) -> Reply:
        return self._send("GET", path, params=params)

    def post(
        self,
        *path: str,
        fields: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Reply:
        """Under an ``idempotency_key``, the same request may be sent again and acts once."""
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        return self._send("POST", path, fields=fields, headers=headers)

    def put(self, *path: str, fields: Mapping[str, Any]) -> Reply:
        return self._send("PUT", path, fields=fields)

    def delete(self, *path: str) -> Reply:
        return self._send("DELETE", path)

    def download(self, *path: str, params: Params, into: BinaryIO) -> None:
        """Append the whole of a file to ``into``; an error when part of it did not come."""
        try:
            with self._http.stream(
                "GET", self._address(path), params=params, follow_redirects=True
            ) as response:
                if not response.is_success:
                    response.read()
                    raise _api_error(response)
                for chunk in response.iter_bytes():
                    into.write(chunk)
        except httpx.RequestError as error:
            raise self._failure(error) from error

    def _send(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        params: Params | None = None,
        fields: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        # Encoded here: httpx would raise on what the API has a proper answer for, such as NaN.
        content = None if fields is None else json.dumps(fields)
        kind = {} if content is None else {"content-type": "application/json"}
        try:
            response = self._http.request(
                method,
                self._address(path),
                params=given,
                content=content,
                headers={**kind, **(headers or {})},
            )
        except httpx.RequestError as error:
            raise self._failure(error) from error
        body = _json_object(response)
        # What took long and failed in the end is an error's body behind a status of 200.
        if not response.is_success or body is None or body.keys() == {"error"}:
            raise _api_error(response)
        poll_after_ms = _number(response.headers.get("openai-poll-after-ms"))
        return Reply(body, None if poll_after_ms is None else poll_after_ms / 1000)

    def _address(self, path: tuple[str, ...]) -> str:
        return "/".join([self.url, *(quote(part, safe="") for part in path)])

    def _failure(self, error: httpx.RequestError) -> CliError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unreachable(self.url, str(error))
        return ConnectionLost(self.url, str(error) or type(error).__name__)


def patiently(action: Callable[[], Result], notice: Callable[[str], None]) -> Result:
    """``action``, again and again while it fails for a transient reason, for PATIENCE_S.

    ``action`` must be safe to repeat. ``notice`` is told once that there is trouble.
    """
    deadline: float | None = None
    pause_s = RETRY_MIN_S
    while True:
        try:
            return action()
        except CliError as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + PATIENCE_S
            if not error.transient or now >= deadline:
                raise
            if pause_s == RETRY_MIN_S:
                notice(f"{error.text()} (trying again for up to {PATIENCE_S:.0f} s)")
            asked_s = min(error.retry_after_s or 0.0, RETRY_AFTER_MAX_S)
            time.sleep(min(max(pause_s, asked_s), deadline - now))
            pause_s = min(2 * pause_s, RETRY_MAX_S)


def _url() -> str:
    given = os.environ.get("REELSERVE_URL", "").strip() or URL_DEFAULT
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        # Not repeated here: it may hold a password.
        raise CliError(
            f"REELSERVE_URL must look like {URL_DEFAULT}, without a user name.", code="invalid_url"
        )
    # An OpenAI SDK's base URL ends in /v1; accept the same one.
    return re.sub(r"/+(v1/*)?$", "", given)


def _key(variable: str, how: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise MissingKey(variable, how)
    if not re.fullmatch(r"[!-~]+", key):
        raise CliError(
            f"{variable} holds characters that no key has.",
            code="invalid_api_key",
            kind="authentication_error",
        )
    return key


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _api_error(response: httpx.Response) -> ApiError:
    """An answer that is not a success. One without our envelope comes from something between."""
    body = _json_object(response)
    if body is None or not isinstance(body.get("error"), dict):
        what = response.headers.get("content-type", "no content type").partition(";")[0]
        body = {
            "error": {
                "message": f"{response.url.host} answered {response.status_code} with {what}, "
                "which is not an answer of Reelserve's API.",
                "type": "server_error",
                "param": None,
                "code": f"http_{response.status_code}",
            }
        }
    retry_after_s = _number(response.headers.get("retry-after"))
    # A quota that is used up is a 429 as well, and does not come back while somebody waits.
    too_long = response.status_code == HTTPStatus.TOO_MANY_REQUESTS and (
        response.headers.get("x-should-retry") == "false" or (retry_after_s or 0) > PATIENCE_S
    )
    return ApiError(
        body,
        status=response.status_code,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=retry_after_s,
        transient=response.status_code in TRANSIENT_STATUSES and not too_long,
    )


def _number(text: str | None) -> float | None:
    """A header's value as a number; None for anything else, such as Retry-After with a date."""
    return float(text) if text and re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip()) else None
