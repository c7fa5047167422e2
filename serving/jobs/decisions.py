"""What the autoscaler decided, kept in Redis: every ingress shows the same, whoever decides.

Who decides writes plain mappings; readers get :class:`Decided`. The two may be of different
versions: what a reader does not know it passes over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.jobs.cell import Cell

log = logging.getLogger(__name__)

HISTORY_MAX = 900
"""Lines that are kept: a quarter of an hour of a decision each second."""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Timed(_View):
    """Written at ``at_ms`` by Redis's clock, ``age_s`` before it was read."""

    at_ms: int
    age_s: float = 0


Read = TypeVar("Read", bound=_Timed)


class SeenClass(_View):
    """What the autoscaler saw of one class: work in seconds of a device. ``parked_s`` waits for
    users who run as many jobs as they may; ``arrived_…`` is what ever came."""

    queued_jobs: int = 0
    queued_s: float = 0
    in_flight_jobs: int = 0
    in_flight_s: float = 0
    parked_s: float = 0
    oldest_wait_s: float = 0
    arrived_jobs: float = 0
    arrived_s: float = 0


class Seen(_View):
    """What it saw of a pool. ``cold_start_s`` is None until it was measured."""

    classes: Mapping[str, SeenClass] = {}
    busy: int = 0
    cold_start_s: float | None = None
    start_failures: int = 0
    start_failure_age_s: float = 0


class Demanded(_View):
    """What the work asks for: ``need`` replicas, by the term ``by`` of the formula, for the class
    ``critical``. ``rate`` is the work that a replica does in a second; ``fast``, ``slow`` and
    ``forecast`` are the work that comes in one."""

    need: int = 0
    by: str = "idle"
    critical: str = ""
    load: float = 0
    work_s: float = 0
    jobs: int = 0
    cold_start_s: float = 0
    clamped: bool = False
    rate: float = 1
    fast: float = 0
    slow: float = 0
    forecast: float = 0
    spike: bool = False


class Knobs(_View):
    """What the operator said of the pool when it was decided."""

    min_replicas: int
    max_replicas: int
    buffer: int = 0
    keep_alive_s: float = 0
    scaling_delay_s: float = 0
    cold_start_s: float = 0


class Shared(_View):
    """What all pools together may take. None is no bound."""

    gpus: float | None = None
    cpus: float | None = None


class Decided(_Timed):
    """The last decision about a pool: ``target`` replicas instead of ``before``, because of
    ``bound``. ``wanted`` would be there without limits in time and without
    the budget. ``sample_age_s`` is for how long what it saw had not changed (None: it never saw
    any); ``retry_in_s`` is when the next replica is tried, where starts failed. ``objectives_s``
    is by class how long a job may wait for its first step."""

    target: int
    before: int
    ready: int
    wanted: int
    bound: str
    why: str
    demand: Demanded = Demanded()
    sample: Seen | None = None
    sample_age_s: float | None = None
    retry_in_s: float | None = None
    scaling: Knobs | None = None
    objectives_s: Mapping[str, float] = {}
    budget: Shared = Shared()


class LinePool(_View):
    """A pool in a line of the history. ``work_s`` is what waits and what runs, in seconds of a
    device; ``load`` is how many replicas would just be in time: over ``ready``, by how much the
    pool is late."""

    target: int
    ready: int
    wanted: int
    bound: str
    work_s: float
    jobs: int
    load: float


class Line(_Timed):
    """All pools at one moment."""

    pools: Mapping[str, LinePool]


class Decisions:
    """Over a cell. Raises :class:`ServiceUnavailable` when Redis does not answer."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    async def write(self, decisions: Mapping[str, Mapping[str, Any]]) -> None:
        """The decisions of all pools, by pool: what :class:`Decided` has, but for the times, which
        are Redis's. A pool that is not among them any more is forgotten."""
        line = {"pools": {pool: _line(decision) for pool, decision in decisions.items()}}
        fields = (text for pool, each in decisions.items() for text in (pool, json.dumps(each)))
        await self._cell.run("decide", json.dumps(line), HISTORY_MAX, *fields)

    async def last(self) -> dict[str, Decided]:
        """By pool, in their order of name. Empty while nothing was ever decided."""
        now_ms, flat, _ = await self._cell.run("decided", 0)
        pools = sorted(zip(flat[::2], flat[1::2], strict=True))
        read = ((pool, _read(Decided, text, now_ms)) for pool, text in pools)
        return {pool: decided for pool, decided in read if decided is not None}

    async def history(self, limit: int = HISTORY_MAX) -> list[Line]:
        """The newest ``limit`` lines, the newest first."""
        now_ms, _, texts = await self._cell.run("decided", limit)
        read = (_read(Line, text, now_ms) for text in texts)
        return [line for line in read if line is not None]


def _line(decision: Mapping[str, Any]) -> dict[str, Any]:
    """The backlog is that of the sample: who holds for lack of a new one has no demand."""
    demand, sample = decision["demand"], decision["sample"]
    work_s, jobs = demand["work_s"], demand["jobs"]
    if sample is not None:
        seen = sample["classes"].values()
        work_s = sum(each["queued_s"] + each["in_flight_s"] for each in seen)
        jobs = sum(each["queued_jobs"] + each["in_flight_jobs"] for each in seen)
    return {
        **{name: decision[name] for name in ("target", "ready", "wanted", "bound")},
        "work_s": round(work_s, 3),
        "jobs": jobs,
        "load": round(demand["load"], 3),
    }


def _read(kind: type[Read], text: str, now_ms: int) -> Read | None:
    try:
        read = kind.model_validate_json(text)
    except ValidationError as error:
        log.warning("a decision of the autoscaler cannot be read: %s", error)
        return None
    return read.model_copy(update={"age_s": max(0, now_ms - read.at_ms) / 1000})
