"""A pool at one moment: what waits and runs, how its jobs fared, and its replicas."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from serving.jobs.job import State
from serving.plan.classes import CLASSES, ServiceClass

BUCKETS_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600)
"""Upper bounds of histograms, as ``_measures.lua`` has them."""


class ReplicaStatus(StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"


@dataclass(frozen=True)
class ReplicaState:
    """A live replica: its class of ``device``, how many of its ``slots`` are ``free``, and for how
    long it has lived. One that starts has no slots yet."""

    id: str
    host: str
    pid: int
    device: str
    state: ReplicaStatus
    slots: int
    free: int
    age_s: float

    @classmethod
    def of(cls, raw: Mapping[str, str], now_ms: int) -> Self:
        return cls(
            id=raw["id"],
            host=raw["host"],
            pid=int(raw["pid"]),
            device=raw.get("device", ""),
            state=ReplicaStatus(raw["state"]),
            slots=int(raw["slots"]),
            free=int(raw["free"]),
            age_s=round(max(0, now_ms - int(raw["started_ms"])) / 1000, 1),
        )


@dataclass(frozen=True)
class Backlog:
    """Of one class. Device milliseconds are by estimate, and what is left: of jobs that wait, what
    no checkpoint saves; of those in flight, what was not spent. ``queued…`` may be leased,
    ``parked…`` waits for users who run as many jobs as they may (an estimate where hundreds do).

    ``oldest_ms`` is the age of the oldest that may be leased (0: none may). Where many jobs of
    other classes are older it is an upper bound: ``observe.lua`` says how many. ``arrived…`` counts
    what was ever accepted.
    """

    queued_jobs: int = 0
    queued_ms: int = 0
    parked_jobs: int = 0
    parked_ms: int = 0
    in_flight_jobs: int = 0
    in_flight_ms: int = 0
    oldest_ms: int = 0
    arrived_jobs: int = 0
    arrived_ms: int = 0


@dataclass(frozen=True)
class Histogram:
    """How many took no longer than each of :data:`BUCKETS_S` and longer than the one before; the
    last figure is of those that took longer than all. ``sum_s`` is what they took together."""

    counts: Sequence[int] = (0,) * (len(BUCKETS_S) + 1)
    sum_s: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Starts:
    """Replicas that became ``ready`` and that ``failed`` to, ever; ``failures`` counts those since
    the last that became ready, of which the last was ``failure_age_s`` ago, for ``error``, the name
    of an exception or ``silent``. ``latest_s`` are the latest start-up times, newest first."""

    ready: int = 0
    failed: int = 0
    failures: int = 0
    failure_age_s: float = 0.0
    error: str = ""
    latest_s: Sequence[float] = ()

    @property
    def cold_start_s(self) -> float | None:
        """What nine of ten of the latest did not exceed; None before the first."""
        if not self.latest_s:
            return None
        ordered = sorted(self.latest_s)
        return ordered[math.ceil(0.9 * len(ordered)) - 1]


@dataclass(frozen=True)
class PoolState:
    """One pool, as of ``now_ms`` by the clock of the scripts.

    ``counts`` is how often what happened: yielded, preempted, lease_lost, resumed,
    resumed_from_memory, checkpoint_corrupt, checkpoint_foreign, checkpoint_missing. ``tallies`` is
    what replicas counted themselves, those that are gone included: prompt_cache_hits,
    prompt_cache_misses. ``refused`` is by reason, ``steps`` those that were lost and redone.
    ``times`` has the histograms by class and name: wait, first_step, done. ``slo`` counts jobs by
    class, objective (first_step, done) and outcome (attained, missed).
    """

    now_ms: int
    queued: int
    in_progress: int
    backlog: Mapping[ServiceClass, Backlog]
    ended: Mapping[State, int]
    counts: Mapping[str, int]
    tallies: Mapping[str, int]
    refused: Mapping[str, int]
    steps: Mapping[str, int]
    times: Mapping[tuple[ServiceClass, str], Histogram]
    slo: Mapping[tuple[ServiceClass, str, str], int]
    starts: Starts
    replicas: Sequence[ReplicaState]

    @property
    def oldest_ms(self) -> int:
        """The age of the oldest queued job."""
        return max(backlog.oldest_ms for backlog in self.backlog.values())

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Self:
        """From what ``observe.lua`` answers."""
        now_ms, queued, leased, waits, *by_class, startups, replicas = answer
        in_flight, parked, oldest, *hashes = by_class
        ended, counts, tallies, refused, steps, times, slo, starts = map(_hash, hashes)
        backlog = {
            each: _backlog(_numbers(_hash(waits), each), flight, held, int(age_ms))
            for each, flight, held, age_ms in zip(CLASSES, in_flight, parked, oldest, strict=True)
        }
        return cls(
            now_ms=int(now_ms),
            queued=queued,
            in_progress=leased,
            backlog=backlog,
            ended={State(name): int(count) for name, count in ended.items()},
            counts={name: int(count) for name, count in counts.items()},
            tallies={name: int(count) for name, count in tallies.items()},
            refused={name: int(count) for name, count in refused.items()},
            steps={name: int(count) for name, count in steps.items()},
            times=_histograms(times),
            slo=_slo(slo),
            starts=_starts(starts, startups, int(now_ms)),
            replicas=[ReplicaState.of(_hash(raw), int(now_ms)) for raw in replicas],
        )


def _hash(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _numbers(fields: Mapping[str, str], service_class: ServiceClass) -> dict[str, int]:
    start = f"{service_class}:"
    return {
        name.removeprefix(start): int(value)
        for name, value in fields.items()
        if name.startswith(start)
    }


def _backlog(
    waits: Mapping[str, int], in_flight: Sequence[int], parked: Sequence[int], oldest_ms: int
) -> Backlog:
    jobs, ms = waits.get("jobs", 0), waits.get("ms", 0)
    running_jobs, running_ms, running_est_ms = in_flight
    ended_jobs, ended_ms = waits.get("ended_jobs", 0), waits.get("ended_ms", 0)
    return Backlog(
        queued_jobs=jobs - parked[0],
        queued_ms=ms - parked[1],
        parked_jobs=parked[0],
        parked_ms=parked[1],
        in_flight_jobs=running_jobs,
        in_flight_ms=running_ms,
        oldest_ms=max(0, oldest_ms),
        arrived_jobs=jobs + running_jobs + ended_jobs,
        arrived_ms=ms + waits.get("saved_ms", 0) + running_est_ms + ended_ms,
    )


def _histograms(fields: Mapping[str, str]) -> dict[tuple[ServiceClass, str], Histogram]:
    buckets: dict[tuple[ServiceClass, str], Counter[str]] = {}
    for field, value in fields.items():
        service_class, name, bucket = field.split(":")
        found = buckets.setdefault((ServiceClass(service_class), name), Counter())
        found[bucket] += int(value)
    bounds = [*(f"{bound:g}" for bound in BUCKETS_S), "inf"]
    return {
        named: Histogram([found[bound] for bound in bounds], found["sum"] / 1000)
        for named, found in buckets.items()
    }


def _slo(fields: Mapping[str, str]) -> dict[tuple[ServiceClass, str, str], int]:
    split = ((field.split(":"), int(value)) for field, value in fields.items())
    return {(ServiceClass(each), objective, outcome): n for (each, objective, outcome), n in split}


def _starts(fields: Mapping[str, str], startups_ms: Iterable[str], now_ms: int) -> Starts:
    failed_ms = int(fields.get("failed_ms", now_ms))
    return Starts(
        ready=int(fields.get("ready", 0)),
        failed=int(fields.get("failed", 0)),
        failures=int(fields.get("failures", 0)),
        failure_age_s=max(0, now_ms - failed_ms) / 1000,
        error=fields.get("error", ""),
        latest_s=tuple(int(ms) / 1000 for ms in startups_ms),
    )
