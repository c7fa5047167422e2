"""A YAML file that an operator edits while the cell works: read strictly, and read again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from quota.located import Document, Loc, NotReadable, read_document
from serving.plan.errors import ConfigError

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 1 << 20
MISTAKES_SHOWN_MAX = 5
LOOK_EVERY_S = 1.0


class Strict(BaseModel):
    """Fields of a file; an unknown one is a mistake."""

    # By name too, for Python code; a file is read by alias alone (see load).
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Whole(Strict):
    """All that a file says."""

    what: ClassVar[str]
    """Of what it is a file, in the plural."""
    parts: ClassVar[Mapping[int, type[Strict]]]
    """Whose fields stand at which depth; its own do at 1."""


T = TypeVar("T", bound=Whole)


def load(file: Path, whole: type[T]) -> T:
    """What ``file`` says. :class:`ConfigError` names the file, the line and the field."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the {whole.what} in {file}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{file}: longer than {FILE_BYTES_MAX} bytes")
    try:
        document = read_document(raw)
    except NotReadable as error:
        told = _told(error.line, error.loc, str(error))
        raise ConfigError(f"{file} {told}") from None
    try:
        return whole.model_validate(document.data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(f"{file} {_all_told(error, document, whole)}") from None


def _all_told(error: ValidationError, document: Document, whole: type[Whole]) -> str:
    """Every mistake, from the top of the file down."""
    mistakes = sorted(
        (document.line(each["loc"]), each["loc"], _reason(each, whole)) for each in error.errors()
    )
    told = [_told(*mistake) for mistake in mistakes[:MISTAKES_SHOWN_MAX]]
    more = len(mistakes) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _told(line: int, loc: Loc, reason: str) -> str:
    where = ".".join(str(part) for part in loc if part != "[key]")
    return f"line {line}, {where}: {reason}" if where else f"line {line}: {reason}"


def _reason(mistake: ErrorDetails, whole: type[Whole]) -> str:
    """What pydantic says, in the words of a file."""
    match mistake["type"]:
        case "extra_forbidden":
            depth = len(mistake["loc"])
            fields = (whole if depth == 1 else whole.parts[depth]).model_fields.items()
            return f"no such field; there are {', '.join(f.alias or n for n, f in fields)}"
        case "missing":
            return "is missing"
        case "model_type" | "dict_type":
            return "must be fields, each with a name and a value"
        case "value_error":
            return str(mistake["ctx"]["error"])
    given = mistake["input"]
    shown = "" if isinstance(given, dict | list) else f", not {json.dumps(given)[:64]}"
    return f"{mistake['msg'].replace('Input s', 's')}{shown}"


class ConfigFile(Generic[T]):
    """What a file says, as it is now: an edit counts within a second, without a restart.

    A file that is wrong, or gone, changes nothing: the last good one stays in force, and
    :attr:`error` says why. Raises :class:`ConfigError` when there is none to begin with.
    ``clock`` is in seconds since the epoch.
    """

    whole: type[T]

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self.file = file
        self.error: str | None = None
        """Why the file as it is now is not in force; None when it is."""
        self.changed_at = clock()
        """Since when what is in force is, by ``clock``."""
        self._clock = clock
        self._looked_s = self.changed_at
        self._seen = _identity(file)
        self._current = load(file, self.whole)

    @property
    def current(self) -> T:
        """What is in force: the same object for as long as it is the same.

        Looks at the file at most once a second, so that it may be asked for each request.
        """
        now_s = self._clock()
        # A clock that was put back must not stop it from looking.
        if not 0 <= now_s - self._looked_s < LOOK_EVERY_S:
            self._looked_s = now_s
            self._look()
        return self._current

    def _look(self) -> None:
        # Before it is read: what is written in between shows at the next look.
        seen = _identity(self.file)
        if seen is not None and seen == self._seen:
            return
        self._seen = seen
        try:
            read = load(self.file, self.whole)
        except ConfigError as error:
            if isinstance(error.__cause__, OSError):
                self._seen = None  # readable or not has nothing to do with an edit: try again
            if error.message != self.error:
                log.error("The %s stay as they were: %s", self.whole.what, error.message)
            self.error = error.message
            return
        self.error = None
        if read != self._current:
            self._current, self.changed_at = read, self._looked_s
            log.info("New %s from %s", self.whole.what, self.file)


def _identity(file: Path) -> tuple[int, ...] | None:
    """Changes with an edit, and when the path leads to another file: a Kubernetes ConfigMap is
    updated by swapping a symbolic link on the way. None when there is no file."""
    try:
        state = file.stat()
    except OSError:
        return None
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
