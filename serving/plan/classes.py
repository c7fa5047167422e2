"""Classes of jobs: who goes first, and what each may count on."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field


class ServiceClass(StrEnum):
    """In the order of precedence."""

    BURST = "burst"
    STANDARD = "standard"
    RELAXED = "relaxed"


CLASSES = tuple(ServiceClass)


class ServiceTier(StrEnum):
    """What a caller asks for: ``priority`` is burst, ``default`` standard, ``flex`` relaxed; under
    ``auto`` it is what the tier gives."""

    AUTO = "auto"
    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"


class ClassPolicy(BaseModel):
    """What a class of one model may count on.

    ``share`` of the leased device time goes to it while it has jobs that wait, whatever the
    others have. Its objective is to begin within ``first_step_s`` of submission (None: no
    objective) and to be done within ``factor`` times the solo time after that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(gt=0, lt=1)
    first_step_s: float | None = Field(None, gt=0)
    factor: float = Field(3.0, ge=1)


DEFAULT_POLICIES: Mapping[ServiceClass, ClassPolicy] = {
    ServiceClass.BURST: ClassPolicy(share=0.6, first_step_s=30),
    ServiceClass.STANDARD: ClassPolicy(share=0.3, first_step_s=180),
    ServiceClass.RELAXED: ClassPolicy(share=0.1, first_step_s=None),
}


class Offered(Protocol):
    """A model of whatever kind, as admission sees it."""

    @property
    def id(self) -> str: ...

    @property
    def aliases(self) -> list[str]: ...

    @property
    def classes(self) -> Mapping[ServiceClass, ClassPolicy]: ...
