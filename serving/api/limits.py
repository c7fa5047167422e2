"""Pure ASGI layers around the app: a request id on every answer, a bound on every body."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import context
from serving.plan.errors import PayloadTooLarge

DRAIN_BYTES_MAX = 64 << 20
"""How much of a body that is too large is read and thrown away. A client that is still
sending when the connection closes sees a broken pipe instead of the answer."""

LOGGED_CHARS = 128
"""Of a request's id, which its sender may have chosen."""


class RequestId:
    """Gives every request an id, in ``request.state.request_id`` and ``x-request-id``.

    Ray Serve names each request and echoes the name on the answer, so one that comes with a name
    is left to it; one that comes without, as outside of Serve, is named and answered here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        request_id = given or f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with context.bound(request_id=request_id[:LOGGED_CHARS]):
            await self._app(scope, receive, send if given else send_with_id)


class BodyLimit:
    """:class:`PayloadTooLarge` to whoever reads a body of more than ``bytes_max``."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_large = declared.isdigit() and int(declared) > self._bytes_max
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if too_large or seen > self._bytes_max:
                while message.get("more_body") and seen < DRAIN_BYTES_MAX:
                    message = await receive()
                    seen += len(message.get("body", b""))
                raise PayloadTooLarge(
                    f"The request body is larger than {self._bytes_max} bytes, "
                    "which is the limit here."
                )
            return message

        await self._app(scope, bounded, send)
