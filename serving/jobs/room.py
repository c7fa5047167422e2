"""What a replica that asks for a job has room for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from serving.plan.classes import ServiceClass


@dataclass(frozen=True)
class Resident:
    """A job that a replica runs, under ``fence``.

    ``left_ms`` of device work is left, steps among it if it ``denoises``. Stopping it and going on
    with it later would cost ``switch_ms``.
    """

    id: str
    fence: int
    left_ms: int
    switch_ms: int
    denoises: bool


@dataclass(frozen=True)
class Rows:
    """Rows that one forward of a shape may carry: at no more than it costs now, and at all."""

    cheap: int
    most: int


@dataclass(frozen=True)
class Room:
    """``free`` slots beside ``runs``, the rows of their ``shapes``, and how many jobs are past the
    engine and being delivered."""

    free: int = 1
    runs: Sequence[Resident] = ()
    shapes: Mapping[str, Rows] = field(default_factory=dict)
    delivering: int = 0

    def to_json(self, quantum_s: float, shares: Mapping[ServiceClass, float]) -> str:
        """As ``lease.lua`` reads it; it preempts no run that is younger than ``quantum_s``, and
        gives each class its share."""
        return json.dumps({**asdict(self), "quantum_ms": 1000 * quantum_s, "shares": shares})


IDLE = Room()
"""A replica that runs nothing."""
