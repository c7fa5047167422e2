"""Every failure a command reports on purpose.

    CliError              exit 1, one message, a stable ``code``
    ├── MissingKey        the variable with the API key is not set
    ├── Unreachable       nobody listens at REELSERVE_URL
    ├── ConnectionLost    the answer did not come, or not all of it
    ├── ApiError          Reelserve answered with an error
    └── Interrupted       exit 130: Ctrl-C

``transient`` says that the same request may succeed a moment later.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CliError(Exception):
    """Ends the command. ``hint`` says what to do next; ``video`` is the last state known of the
    job in question, for ``--json``."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str,
        kind: str = "client_error",
        hint: str = "",
        transient: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.kind = kind
        self.hint = hint
        self.transient = transient
        self.retry_after_s: float | None = None
        self.video: dict[str, Any] | None = None

    def envelope(self) -> dict[str, Any]:
        """The error in the shape the API gives its own."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        }

    def text(self) -> str:
        """The error in one line for a person."""
        return self.message


class MissingKey(CliError):
    """The command needs a key and its variable is not set."""

    def __init__(self, variable: str, how: str) -> None:
        super().__init__(
            f"{variable} is not set. {how}", code="missing_api_key", kind="authentication_error"
        )


class Unreachable(CliError):
    """The request was not sent, because there was nobody to send it to."""

    def __init__(self, url: str, reason: str) -> None:
        detail = "" if "refused" in reason or not reason else f" ({reason})"
        super().__init__(
            f"cannot reach Reelserve at {url}; is `reelserve up` running?{detail}",
            code="unreachable",
            kind="connection_error",
            transient=True,
        )


class ConnectionLost(CliError):
    """The request was sent and its answer did not arrive whole."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"the connection to {url} was lost ({reason})",
            code="connection_lost",
            kind="connection_error",
            transient=True,
        )


class ApiError(CliError):
    """An error answer. ``body`` is its envelope as it came."""

    def __init__(
        self,
        body: dict[str, Any],
        *,
        status: int,
        request_id: str | None,
        retry_after_s: float | None,
        transient: bool,
    ) -> None:
        error = body["error"]
        super().__init__(
            str(error.get("message")),
            code=str(error.get("code") or f"http_{status}"),
            kind=str(error.get("type")),
            transient=transient,
        )
        self.body = body
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def envelope(self) -> dict[str, Any]:
        return {**self.body, "request_id": self.request_id}

    def text(self) -> str:
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.message} ({self.code}{request})"


class Interrupted(CliError):
    """Ctrl-C."""

    exit_code = 130

    def __init__(self, message: str = "Interrupted.") -> None:
        super().__init__(message, code="interrupted")
