"""Every failure leaves as the OpenAI error envelope, with a stable ``code``."""

from __future__ import annotations

import logging
import math
import time
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving import context
from serving.api.limits import LOGGED_CHARS
from serving.api.quota import rate_headers
from serving.jobs import Allowance
from serving.media import ArtifactMissing, StoreError
from serving.plan.errors import (
    InvalidRequest,
    NotFound,
    NotOffered,
    ReelserveError,
    Refused,
    ServiceUnavailable,
)

log = logging.getLogger(__name__)

UNAVAILABLE_S = 2
"""When to ask again for what is away: it mostly comes back at once."""


def envelope(message: str, *, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(error: ReelserveError) -> JSONResponse:
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        headers |= _come_back(error)
    elif error.retryable:
        headers["retry-after"] = str(UNAVAILABLE_S)
    elif isinstance(error, NotOffered):
        headers["x-should-retry"] = "false"  # clients repeat what is a 5xx
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(
        envelope(error.message, kind=error.kind, code=error.code, param=error.param),
        status_code=error.status,
        headers=headers,
    )


def _come_back(error: Refused) -> dict[str, str]:
    """When to ask again, whether to do so without being told, and what is left."""
    headers = {}
    if error.retry_after_s is not None:
        wait_ms = max(1, math.ceil(1000 * error.retry_after_s))
        headers["retry-after"] = str(math.ceil(wait_ms / 1000))
        headers["retry-after-ms"] = str(wait_ms)
    if not error.should_retry:
        headers["x-should-retry"] = "false"
    if isinstance(error.allowance, Allowance):
        headers |= rate_headers(error.allowance, round(time.time() * 1000))
    return headers


def install(app: FastAPI) -> None:
    """Register the handlers: ours, the framework's, and whatever nobody expected."""

    @app.exception_handler(ReelserveError)
    async def ours(request: Request, error: ReelserveError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(StoreError)
    async def store(request: Request, error: StoreError) -> JSONResponse:
        log.warning("the store: %s", error)
        if isinstance(error, ArtifactMissing):
            return answer(NotFound("The file is no longer stored.", code="content_not_found"))
        return answer(ServiceUnavailable("The artifact store does not answer. Try again shortly."))

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return answer(InvalidRequest(f"'{param}': {first['msg']}.", param=param))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        message = str(error.detail)
        if status is HTTPStatus.NOT_FOUND:
            message = f"There is no {request.method} {request.url.path[:200]}. See /docs."
        return JSONResponse(
            envelope(message, kind="invalid_request_error", code=status.name.lower()),
            status_code=status,
            headers=error.headers,
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        request_id = request.state.request_id
        # This handler runs outside every other layer, so it names the request itself.
        with context.bound(request_id=request_id[:LOGGED_CHARS]):
            log.error("%s %s failed", request.method, request.url.path[:200], exc_info=error)
        named = "x-request-id" in request.headers
        return JSONResponse(
            envelope(
                f"Something went wrong here. Tell the operator the request id {request_id}.",
                kind="server_error",
                code="internal_error",
            ),
            status_code=HTTPStatus.INTERNAL_SERVER_ERROR,
            headers={} if named else {"x-request-id": request_id},
        )
