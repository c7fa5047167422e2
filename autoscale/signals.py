"""What the policy reads, in PromQL: the one place that names it.

Every signal is a plain series with labels, so the same selector serves a query of Prometheus and
text scraped from the ingress itself. Where several ingresses are scraped each has its own copy of
the same state: the highest counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from autoscale.values import ClassSample, Pool, Sample

Labels = tuple[str, ...]
Reading = Mapping[Labels, float]
"""Values of a signal by the labels it is grouped by."""


@dataclass(frozen=True)
class Signal:
    """The samples of ``metric`` that have the labels ``where``, by the labels ``by``."""

    metric: str
    by: Labels = ("model",)
    where: Mapping[str, str] = field(default_factory=dict, hash=False)

    def promql(self, cell: Mapping[str, str]) -> str:
        """``cell``: labels that tell this cell's series from another's in the same Prometheus."""
        matchers = ", ".join(f'{name}="{value}"' for name, value in {**self.where, **cell}.items())
        by = f" by ({', '.join(self.by)})" if self.by else ""
        return f"max{by} ({self.metric}{{{matchers}}})" if matchers else f"max{by} ({self.metric})"

    def of(self, samples: Iterable[tuple[Mapping[str, str], float]]) -> Reading:
        """The same of ``samples``, which are (labels, value) of the metric."""
        found: dict[Labels, float] = {}
        for labels, value in samples:
            if all(labels.get(name) == wanted for name, wanted in self.where.items()):
                key = tuple(labels.get(name, "") for name in self.by)
                found[key] = max(value, found.get(key, value))
        return found


def _backlog(unit: str, state: str) -> Signal:
    return Signal(f"reelserve_backlog_{unit}", ("model", "class"), {"state": state})


AT = Signal("reelserve_state_time_seconds", by=())
QUEUED_JOBS, QUEUED_S = _backlog("jobs", "queued"), _backlog("gpu_seconds", "queued")
IN_FLIGHT_JOBS, IN_FLIGHT_S = _backlog("jobs", "in_flight"), _backlog("gpu_seconds", "in_flight")
PARKED_S = _backlog("gpu_seconds", "parked")
OLDEST_S = Signal("reelserve_queue_oldest_wait_seconds", ("model", "class"))
ARRIVED_JOBS = Signal("reelserve_jobs_admitted_total", ("model", "class"))
ARRIVED_S = Signal("reelserve_arrivals_gpu_seconds_total", ("model", "class"))
BUSY = Signal("reelserve_replicas", where={"state": "busy"})
START_FAILURES = Signal("reelserve_replica_start_failures")
START_FAILURE_AGE_S = Signal("reelserve_replica_start_failure_age_seconds")
COLD_START_S = Signal("reelserve_replica_cold_start_seconds")

BY_CLASS = (
    QUEUED_JOBS,
    QUEUED_S,
    IN_FLIGHT_JOBS,
    IN_FLIGHT_S,
    PARKED_S,
    OLDEST_S,
    ARRIVED_JOBS,
    ARRIVED_S,
)
REQUIRED = (AT, *BY_CLASS, BUSY, START_FAILURES)
"""Without one of these for a pool, the pool was not seen."""
OPTIONAL = (START_FAILURE_AGE_S, COLD_START_S)
"""Absent before there was one."""
SIGNALS = REQUIRED + OPTIONAL


def from_text(text: str) -> Mapping[str, Reading]:
    """Readings by signal, under its PromQL, from what an exporter says. ValueError if it is no such
    text."""
    by_metric: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            by_metric.setdefault(each.name, []).append((each.labels, each.value))
    readings = {}
    for signal in SIGNALS:
        if found := signal.of(by_metric.get(signal.metric, ())):
            readings[signal.promql({})] = found
    return readings


def samples(
    readings: Mapping[str, Reading], pools: Sequence[Pool], cell: Mapping[str, str]
) -> Mapping[str, Sample | None]:
    """Each pool as it was seen; None where something that must be there is not."""
    read = {signal: readings.get(signal.promql(cell), {}) for signal in SIGNALS}
    return {pool.name: _sample(read, pool) for pool in pools}


def _sample(read: Mapping[Signal, Reading], pool: Pool) -> Sample | None:
    def of(signal: Signal, *more: str) -> float:
        return read[signal][(pool.name, *more)]

    try:
        classes = {
            name: ClassSample(
                queued_jobs=int(of(QUEUED_JOBS, name)),
                queued_s=of(QUEUED_S, name),
                in_flight_jobs=int(of(IN_FLIGHT_JOBS, name)),
                in_flight_s=of(IN_FLIGHT_S, name),
                parked_s=of(PARKED_S, name),
                oldest_wait_s=of(OLDEST_S, name),
                arrived_jobs=of(ARRIVED_JOBS, name),
                arrived_s=of(ARRIVED_S, name),
            )
            for name in pool.objectives_s
        }
        return Sample(
            at_s=read[AT][()],
            classes=classes,
            busy=int(of(BUSY)),
            start_failures=int(of(START_FAILURES)),
            start_failure_age_s=read[START_FAILURE_AGE_S].get((pool.name,), 0.0),
            cold_start_s=read[COLD_START_S].get((pool.name,)),
        )
    except KeyError:
        return None
