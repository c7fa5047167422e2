"""Packs: the credits that are for sale, from one YAML file.

``docs/credits.md`` explains the fields to an operator, and ``quota/packs.yaml`` is the file that
comes with the code.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from quota.config_file import ConfigFile, Strict, Whole, load
from serving.plan.price import MILLI

CREDITS_MAX = 10**9
PRICE_MAX = 99_999_999
"""In minor units: the most that Stripe charges at once."""
DAYS_MAX = 3650


def _whole_milli(credits: float) -> float:
    if Decimal(repr(credits)) * MILLI % 1:
        raise ValueError("has more than three decimals")
    return credits


# Strict, because YAML's "yes" is a boolean and would be taken for 1.
PackName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Credits = Annotated[
    float,
    Field(strict=True, gt=0, le=CREDITS_MAX, allow_inf_nan=False),
    AfterValidator(_whole_milli),
]


class Pack(Strict):
    """Credits that are bought together."""

    title: str = Field(min_length=1, max_length=100, description="what its buyer reads")
    credits: Credits = Field(description="with three decimals at most")
    price_minor: int = Field(
        strict=True, ge=1, le=PRICE_MAX, description="in the currency's minor unit, such as cents"
    )
    expires_days: Annotated[int, Field(strict=True, ge=1, le=DAYS_MAX)] | None = Field(
        None, description="after the payment; null: never"
    )

    @property
    def milli_credits(self) -> int:
        return int(Decimal(repr(self.credits)) * MILLI)


class Packs(Whole):
    """Every pack, by name, and what they share."""

    what = "packs"
    parts = {3: Pack}  # noqa: RUF012

    currency: str = Field("usd", pattern=r"^[a-z]{3}$", description="ISO 4217, in lower case")
    packs: dict[PackName, Pack]


class PackFile(ConfigFile[Packs]):
    """The packs that are for sale."""

    whole = Packs


def load_packs(file: Path) -> Packs:
    """The packs in ``file``. :class:`ConfigError` names the file, the line and the field."""
    return load(file, Packs)
