"""Tiers: what each kind of user may do, from one YAML file.

``docs/quotas.md`` explains the fields to an operator, and ``quota/tiers.yaml`` is the file that
comes with the code. Here they are plain values; counting what a user did is the queue's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from quota.config_file import ConfigFile, Strict, Whole, load
from quota.days import midnights_ms, require_zone
from serving.plan.catalog import parse_size
from serving.plan.classes import CLASSES, ServiceClass
from serving.plan.errors import NotPermitted

COUNT_MAX = 10**9
"""Of any limit: far above what anybody needs, and in milliseconds still exact in a script."""

# Strict, because YAML's "yes" is a boolean and would be taken for 1.
Allowance = Annotated[int, Field(strict=True, ge=0, le=COUNT_MAX)]
Bound = Annotated[int, Field(strict=True, ge=1, le=COUNT_MAX)]
TierName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _is_size(text: str) -> str:
    parse_size(text)
    return text


class Surge(Strict):
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


class Tier(Strict):
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

    def allows(self, model_id: str, aliases: Sequence[str], size: str | None) -> None:
        """Pass when the tier has this model, under any of its names, and this size, if
        it has one.

        Raises :class:`NotPermitted` with code ``model_not_allowed`` or ``size_not_allowed``.
        """
        if self.models is not None and not {model_id, *aliases} & set(self.models):
            raise _not_allowed("model", model_id, "models", self.models)
        if self.sizes is not None and size is not None and size not in self.sizes:
            raise _not_allowed("size", size, "sizes", self.sizes)


def _not_allowed(param: str, given: str, plural: str, allowed: Sequence[str]) -> NotPermitted:
    return NotPermitted(
        f"Your tier does not include the {param} '{given}'. The {plural} it includes: "
        f"{', '.join(allowed)}. Choose one of them, or ask the operator for another tier.",
        code=f"{param}_not_allowed",
        param=param,
    )


class Tiers(Whole):
    """Every tier, by name, and what they share."""

    what = "tiers"
    parts = {3: Tier, 4: Surge}  # noqa: RUF012

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


class TierFile(ConfigFile[Tiers]):
    """The tiers that are in force."""

    whole = Tiers


def load_tiers(file: Path) -> Tiers:
    """The tiers in ``file``. :class:`ConfigError` names the file, the line and the field."""
    return load(file, Tiers)
