"""Tiers: what each kind of user may do, from one YAML file.

``docs/quotas.md`` explains the fields to an operator, and ``quota/tiers.yaml`` is the file that
comes with the code. Here they are plain values; counting what a user did is the queue's work.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from quota.days import midnights_ms, require_zone
from quota.located import Document, Loc, NotReadable, read_document
from serving.plan.catalog import parse_size
from serving.plan.classes import CLASSES, ServiceClass
from serving.plan.errors import ConfigError, NotPermitted

log = logging.getLogger(__name__)

COUNT_MAX = 10**9
"""Of any limit: far above what anybody needs, and in milliseconds still exact in a script."""

FILE_BYTES_MAX = 1 << 20
MISTAKES_SHOWN_MAX = 5
LOOK_EVERY_S = 1.0


class _Strict(BaseModel):
    # By name too, for Python code; a file is read by alias alone (see _validated).
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


# Strict, because YAML's "yes" is a boolean and would be taken for 1.
Allowance = Annotated[int, Field(strict=True, ge=0, le=COUNT_MAX)]
Bound = Annotated[int, Field(strict=True, ge=1, le=COUNT_MAX)]
TierName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _is_size(text: str) -> str:
    parse_size(text)
    return text


class Surge(_Strict):
    """What holds instead while a model's backlog is longer than its objective allows."""

    generations_per_day: Allowance | None = Field(None, description="null: as without a surge")
    service_class: ServiceClass | None = Field(
        None, alias="class", description="inside the allowance; null: as without a surge"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.generations_per_day is None and self.service_class is None:
            raise ValueError("says nothing: give generations_per_day or class, or leave it out")
        return self


class Tier(_Strict):
    """What a user may do. None is no limit."""

    generations_per_day: Allowance | None = Field(
        None, description="clips submitted inside the allowance, from midnight to midnight"
    )
    gpu_seconds_per_day: float | None = Field(
        None, strict=True, ge=0, le=COUNT_MAX, allow_inf_nan=False, description="device time"
    )
    running_jobs: Bound | None = Field(None, description="at once; more wait")
    queued_jobs: Bound | None = Field(None, description="that wait; more are refused")
    requests_per_minute: Bound | None = Field(
        None, description="submissions; after a quiet minute, as many at once"
    )
    models: list[str] | None = Field(None, min_length=1, description="ids or aliases")
    sizes: list[Annotated[str, AfterValidator(_is_size)]] | None = Field(None, min_length=1)
    service_class: ServiceClass = Field(
        ServiceClass.STANDARD, alias="class", description="inside the allowance"
    )
    beyond: Literal["relaxed", "credits", "refuse"] = Field(
        "relaxed", description="what happens when the allowance is used up"
    )
    weight: float = Field(
        1.0, strict=True, ge=0.001, le=1000, description="share among users of the same class"
    )
    # Last, because it is held against the fields above.
    surge: Surge | None = None

    @field_validator("surge")
    @classmethod
    def _takes_away(cls, surge: Surge | None, info: ValidationInfo) -> Surge | None:
        if surge is None:
            return None
        usual, less = info.data.get("generations_per_day"), surge.generations_per_day
        if usual is not None and less is not None and less > usual:
            raise ValueError(f"{less} generations_per_day are more than the {usual} without it")
        ahead, behind = info.data.get("service_class"), surge.service_class
        if ahead and behind and CLASSES.index(behind) < CLASSES.index(ahead):
            raise ValueError(f"class {behind} goes before {ahead}, the class without it")
        return surge

    def allows(self, model_id: str, aliases: Sequence[str], size: str) -> None:
        """Pass when the tier has this model, under any of its names, and this size.

        Raises :class:`NotPermitted` with code ``model_not_allowed`` or ``size_not_allowed``.
        """
        if self.models is not None and not {model_id, *aliases} & set(self.models):
            raise _not_allowed("model", model_id, "models", self.models)
        if self.sizes is not None and size not in self.sizes:
            raise _not_allowed("size", size, "sizes", self.sizes)


def _not_allowed(param: str, given: str, plural: str, allowed: Sequence[str]) -> NotPermitted:
    return NotPermitted(
        f"Your tier does not include the {param} '{given}'. The {plural} it includes: "
        f"{', '.join(allowed)}. Choose one of them, or ask the operator for another tier.",
        code=f"{param}_not_allowed",
        param=param,
    )


class Tiers(_Strict):
    """Every tier, by name, and what they share."""

    # First, because the default tier must be one of them.
    tiers: dict[TierName, Tier] = Field(min_length=1)
    default_tier: str = Field(description="of users who were given none")
    time_zone: Annotated[str, AfterValidator(require_zone)] = Field(
        "UTC", description="IANA name; days begin at its midnight"
    )

    @field_validator("default_tier")
    @classmethod
    def _is_a_tier(cls, name: str, info: ValidationInfo) -> str:
        tiers = info.data.get("tiers")
        if tiers is not None and name not in tiers:
            raise ValueError(f"no tier '{name}' in this file; there are {', '.join(tiers)}")
        return name

    def of(self, name: str | None) -> tuple[str, Tier]:
        """The tier called ``name``. The default one for None, and for a name that is not in the
        file any more: its users keep working until somebody gives them another."""
        known = self.default_tier if name is None or name not in self.tiers else name
        return known, self.tiers[known]

    def days_ms(self, now_ms: int) -> list[int]:
        """The local midnights around ``now_ms``, ascending: two before or at it, two after it.

        In ms since the epoch. Two of each, because whoever reads them may have a clock that is as
        much as a day off.
        """
        return midnights_ms(self.time_zone, now_ms)


def load_tiers(file: Path) -> Tiers:
    """The tiers in ``file``. :class:`ConfigError` names the file, the line and the field."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the tiers in {file}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{file}: longer than {FILE_BYTES_MAX} bytes")
    try:
        document = read_document(raw)
    except NotReadable as error:
        told = _told(error.line, error.loc, str(error))
        raise ConfigError(f"{file} {told}") from None
    try:
        return Tiers.model_validate(document.data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(f"{file} {_all_told(error, document)}") from None


def _all_told(error: ValidationError, document: Document) -> str:
    """Every mistake, from the top of the file down."""
    mistakes = sorted(
        (document.line(each["loc"]), each["loc"], _reason(each)) for each in error.errors()
    )
    told = [_told(*mistake) for mistake in mistakes[:MISTAKES_SHOWN_MAX]]
    more = len(mistakes) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _told(line: int, loc: Loc, reason: str) -> str:
    where = ".".join(str(part) for part in loc if part != "[key]")
    return f"line {line}, {where}: {reason}" if where else f"line {line}: {reason}"


FIELDS_OF: dict[int, type[_Strict]] = {1: Tiers, 3: Tier, 4: Surge}
"""Whose fields stand at which depth."""


def _reason(mistake: ErrorDetails) -> str:
    """What pydantic says, in the words of a file."""
    match mistake["type"]:
        case "extra_forbidden":
            fields = FIELDS_OF[len(mistake["loc"])].model_fields.items()
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


class TierFile:
    """The tiers in a file, as they are now: an edit counts within a second, without a restart.

    A file that is wrong, or gone, changes nothing: the last good one stays in force, and
    :attr:`error` says why. Raises :class:`ConfigError` when there is none to begin with.
    ``clock`` is in seconds since the epoch.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self.file = file
        self.error: str | None = None
        """Why the file as it is now is not in force; None when it is."""
        self.changed_at = clock()
        """Since when the tiers in force are, by ``clock``."""
        self._clock = clock
        self._looked_s = self.changed_at
        self._seen = _identity(file)
        self._tiers = load_tiers(file)

    @property
    def current(self) -> Tiers:
        """The tiers in force: the same object for as long as they are the same.

        Looks at the file at most once a second, so that it may be asked for each request.
        """
        now_s = self._clock()
        # A clock that was put back must not stop it from looking.
        if not 0 <= now_s - self._looked_s < LOOK_EVERY_S:
            self._looked_s = now_s
            self._look()
        return self._tiers

    def _look(self) -> None:
        # Before it is read: what is written in between shows at the next look.
        seen = _identity(self.file)
        if seen is not None and seen == self._seen:
            return
        self._seen = seen
        try:
            tiers = load_tiers(self.file)
        except ConfigError as error:
            if isinstance(error.__cause__, OSError):
                self._seen = None  # readable or not has nothing to do with an edit: try again
            if error.message != self.error:
                log.error("The tiers stay as they were: %s", error.message)
            self.error = error.message
            return
        self.error = None
        if tiers != self._tiers:
            self._tiers, self.changed_at = tiers, self._looked_s
            log.info("New tiers from %s", self.file)


def _identity(file: Path) -> tuple[int, ...] | None:
    """Changes with an edit, and when the path leads to another file: a Kubernetes ConfigMap is
    updated by swapping a symbolic link on the way. None when there is no file."""
    try:
        state = file.stat()
    except OSError:
        return None
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
