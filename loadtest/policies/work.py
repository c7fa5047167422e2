"""The load: which clips are asked for, when, and what each of them costs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.errors import LoadTestError


@dataclass(frozen=True, slots=True)
class Kind:
    """Clips of one shape, and how many of all jobs they are."""

    name: str
    share: float
    width: int
    height: int
    seconds: int
    fps: int
    jobs_max: int
    """How many one forward may carry."""

    def spec(self, steps: int, seed: int) -> dict[str, Any]:
        """What :class:`serving.plan.clip.ClipSpec` is made of. Guided, so a job is two rows."""
        return {
            "model": "demo-wan",
            "prompt": "a red ball rolls over a green hill",
            "seconds": self.seconds,
            "fps": self.fps,
            "width": self.width,
            "height": self.height,
            "render_width": self.width,
            "render_height": self.height,
            "steps": steps,
            "guidance_scale": 5.0,
            "seed": seed,
        }


ROWS_PER_JOB = 2

SMALL = Kind("small", 0.6, 64, 64, seconds=1, fps=4, jobs_max=8)
MID = Kind("mid", 0.3, 128, 128, seconds=2, fps=8, jobs_max=2)
LONG = Kind("long", 0.1, 352, 352, seconds=2, fps=8, jobs_max=1)
KINDS = (SMALL, MID, LONG)
"""The parts of 256x256x17, 480x272x33 and 832x480x81 in a mix for Wan 2.1 1.3B. Their forwards
take 0.0036, 0.0158 and 0.283 PFLOP there, 1 to 4.4 to 79; these clips of the tiny Wan (32, 320 and
2,420 tokens) were chosen because their solo times on a CPU relate as 1 to 4 to 73."""

STEPS = (40, 50)
"""Wan 2.2 is released with 40 steps as its default and Wan 2.1 with 50; here half and half."""


@dataclass(frozen=True)
class Costs:
    """Seconds by the name of the kind, as measured on one device; steps by rows of the forward.

    A job is its text encoding and its steps. Decoding is left out: it has a stream of its own
    where there is a GPU, and the tiny Wan's is large beside its steps.
    """

    encode_s: Mapping[str, float]
    step_s: Mapping[str, Mapping[int, float]]

    def shared_step_s(self, kind: Kind, jobs: int) -> float:
        """One forward with ``jobs`` of this kind, filled up to a power of two."""
        return self.step_s[kind.name][1 << (ROWS_PER_JOB * jobs - 1).bit_length()]

    def solo_s(self, kind: Kind, steps: float) -> float:
        """A job alone on an idle replica."""
        return self.encode_s[kind.name] + steps * self.shared_step_s(kind, 1)

    def mean_solo_s(self) -> float:
        """Work that a job of the mix brings, on average."""
        steps = sum(STEPS) / len(STEPS)
        return sum(kind.share * self.solo_s(kind, steps) for kind in KINDS)

    def slowed(self, times: float) -> Costs:
        """Those of a device that takes so many times as long."""
        return Costs(
            {kind: times * took for kind, took in self.encode_s.items()},
            {
                kind: {rows: times * took for rows, took in by_rows.items()}
                for kind, by_rows in self.step_s.items()
            },
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Costs:
        """As :meth:`to_json` wrote it; LoadTestError if it is something else."""
        try:
            return cls(
                {kind.name: float(value["encode_s"][kind.name]) for kind in KINDS},
                {
                    kind.name: {
                        rows: float(value["step_s"][kind.name][str(rows)]) for rows in rows_of(kind)
                    }
                    for kind in KINDS
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LoadTestError(f"these are not costs of this mix: {error!r}") from error

    def to_json(self) -> dict[str, Any]:
        """Values of JSON."""
        return {
            "encode_s": dict(self.encode_s),
            "step_s": {
                kind: {str(rows): took for rows, took in by_rows.items()}
                for kind, by_rows in self.step_s.items()
            },
        }


def rows_of(kind: Kind) -> list[int]:
    """The sizes of this kind's forwards."""
    most = ROWS_PER_JOB * kind.jobs_max
    return [rows for rows in (2, 4, 8, 16) if rows <= most]


@dataclass(slots=True, eq=False)
class Job:
    """One request, and how far it is."""

    index: int
    kind: Kind
    steps: int
    created_s: float
    begun: bool = False
    step: int = 0
    done_s: float = math.nan


def arrivals(costs: Costs, load: float, jobs: int, seed: int) -> list[Job]:
    """A Poisson stream. Load 1 brings a second of solo work per second, which is all that one
    replica does when it shares no forward."""
    draw = random.Random(seed)  # noqa: S311
    rate = load / costs.mean_solo_s()
    shares = [kind.share for kind in KINDS]
    stream, now = [], 0.0
    for index in range(jobs):
        now += draw.expovariate(rate)
        stream.append(Job(index, draw.choices(KINDS, shares)[0], draw.choice(STEPS), now))
    return stream
