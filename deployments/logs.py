"""What a process of the cluster says of its work: in the file that Ray Serve keeps for each
replica, and on stderr where there is none or ``RAY_SERVE_LOG_TO_STDERR`` says so.

A line is one JSON object: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``,
``exception`` if there was one, which process it is, and the ids of what it worked for
(:mod:`serving.context`).
"""

from __future__ import annotations

import json
import logging
import re
import threading
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from typing import Literal

from serving import context

ROOMS = ("deployments", "serving", "quota", "autoscale")
SECRET = re.compile(
    r"\b((?:rsk|sk|rk|whsec)(?:_[0-9a-f]{12}|_[a-z]+)?_)\w{16,}|(?<=://)[^\s/@]*:[^\s/@]*(?=@)"
)
"""Keys of ours and of Stripe's, and the password in a URL."""

log = logging.getLogger(__name__)

Form = Literal["json", "text"]


def set_up_logs(form: Form = "json", **process: str) -> None:
    """Ours from INFO on (who changed what, what became of a payment), of others what is wrong.

    ``process`` is what every line says of this process, such as its ``model`` and ``replica``.
    Python by itself drops what is less than a warning, and Ray sets up nothing but its own.
    """
    formatter = JsonLines(process) if form == "json" else TextLines()
    handlers = _handlers_of_serve() or [logging.StreamHandler()]
    for handler in handlers:
        writes = handler.target if isinstance(handler, MemoryHandler) else handler
        if writes is not None:
            writes.setFormatter(formatter)
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.handlers[:] = handlers
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.INFO)
    # What else would write to stderr by itself.
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended


def _handlers_of_serve() -> list[logging.Handler]:
    """Those of a replica's file, which Serve rotates. It also turns stderr into lines in it, and
    a line of ours must be no message in one of Serve's."""
    handlers = logging.getLogger("ray.serve").handlers
    return handlers[:] if any(isinstance(each, MemoryHandler) for each in handlers) else []


class JsonLines(logging.Formatter):
    """A line is one JSON object, whatever the message has in it."""

    def __init__(self, process: context.Ids = context.NO_IDS) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str | int] = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        if request_id := getattr(record, "request_id", ""):  # Serve's, outside of our layers
            line["request_id"] = request_id
        # In ASCII: in a container, stderr often has no other letters.
        return json.dumps(line | dict(self._process) | dict(context.ids()))


class TextLines(logging.Formatter):
    """The same for people: the ids come last."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(ids)s")

    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in context.ids().items())
        record.ids = f" [{ids}]" if ids else ""
        return redacted(super().format(record))


def rfc3339(seconds: float) -> str:
    """A time since the epoch, in milliseconds, as in ``2026-11-29T13:57:58.012Z``."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def redacted(text: str) -> str:
    """Without what a log must not keep. Nothing of ours logs it: an error of a library might."""
    return SECRET.sub(lambda found: f"{found[1] or ''}…", text)


def _thread_ended(what: threading.ExceptHookArgs) -> None:
    if what.exc_value is None or isinstance(what.exc_value, SystemExit):
        return
    name = what.thread.name if what.thread else "?"
    log.critical("the thread %s ended", name, exc_info=what.exc_value)
