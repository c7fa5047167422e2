"""What the policy reads, in PromQL: the one place that names it.

Every signal is a plain series with labels, so the same selector serves a query of Prometheus and
text scraped from the ingress itself. Where several ingresses are scraped each has its own copy of
the same state: the highest counts. Of Triton servers each has a queue of its own: those add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

from autoscale.values import ClassSample, Pool, Sample, Server

Labels = tuple[str, ...]
Reading = Mapping[Labels, float]
"""Values of a signal by the labels it is grouped by."""
Samples = Iterable[tuple[Mapping[str, str], float]]
"""(labels, value) of each."""


@dataclass(frozen=True)
class Signal:
    """The samples of ``metric`` that have the labels ``where``, by the labels ``by``: the highest
    of them, their ``sum``, how many there are (``count``), or when they were ``read`` last."""

    metric: str
    by: Labels = ("model",)
    where: Mapping[str, str] = field(default_factory=dict, hash=False)
    fold: Literal["max", "sum", "count", "read"] = "max"

    def promql(self, cell: Mapping[str, str]) -> str:
        """``cell``: labels that tell this cell's series from another's in the same Prometheus."""
        matchers = ", ".join(f'{name}="{value}"' for name, value in {**self.where, **cell}.items())
        series = f"{self.metric}{{{matchers}}}" if matchers else self.metric
        by = f" by ({', '.join(self.by)})" if self.by else ""
        if self.fold == "read":
            return f"max{by} (timestamp({series}))"
        return f"{self.fold}{by} ({series})"

    def of(self, samples: Samples, at_s: float = 0.0) -> Reading:
        """The same of ``samples`` of the metric, which were read at ``at_s``."""
        readings = []
        for labels, value in samples:
            if all(labels.get(name) == wanted for name, wanted in self.where.items()):
                key = tuple(labels.get(name, "") for name in self.by)
                readings.append({key: {"count": 1.0, "read": at_s}.get(self.fold, value)})
        return self.together(readings)

    def answered(self, samples: Samples) -> Reading:
        """Of what Prometheus answered to :meth:`promql`."""
        return {tuple(labels.get(name, "") for name in self.by): value for labels, value in samples}

    def together(self, readings: Iterable[Reading]) -> Reading:
        """What several exporters said, as one."""
        found: dict[Labels, float] = {}
        for reading in readings:
            for key, value in reading.items():
                before = found.get(key)
                if before is None:
                    found[key] = value
                elif self.fold in ("sum", "count"):
                    found[key] = before + value
                else:
                    found[key] = max(before, value)
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

_WAITING = "nv_inference_pending_request_count"
WAITING = Signal(_WAITING, fold="sum")
"""Requests that wait in Triton servers, by the model's name there, those at work not counted."""
SERVERS = Signal(_WAITING, fold="count")
READ_AT = Signal(_WAITING, fold="read")
ANSWERED = Signal("nv_inference_request_success", fold="sum")

OF_SERVERS = (WAITING, SERVERS, READ_AT, ANSWERED)
SIGNALS = REQUIRED + OPTIONAL + OF_SERVERS


def from_text(text: str, at_s: float = 0.0) -> Mapping[str, Reading]:
    """Readings by signal, under its PromQL, from what an exporter said at ``at_s``. ValueError if
    it is no such text."""
    by_metric: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            by_metric.setdefault(each.name, []).append((each.labels, each.value))
    readings = {}
    for signal in SIGNALS:
        # The parser gives each counter the suffix that Triton's lack.
        said = by_metric.get(signal.metric) or by_metric.get(f"{signal.metric}_total") or ()
        if found := signal.of(said, at_s):
            readings[signal.promql({})] = found
    return readings


def together(exporters: Sequence[Mapping[str, Reading]]) -> Mapping[str, Reading]:
    """Readings of several exporters, as one."""
    return {
        query: found
        for signal in SIGNALS
        if (query := signal.promql({}))
        and (found := signal.together(each[query] for each in exporters if query in each))
    }


def samples(
    readings: Mapping[str, Reading], pools: Sequence[Pool], cell: Mapping[str, str]
) -> Mapping[str, Sample | None]:
    """Each pool as it was seen; None where something that must be there is not."""
    read = {signal: readings.get(signal.promql(cell), {}) for signal in SIGNALS}
    return {
        pool.name: _served(read, pool, pool.server) if pool.server else _sample(read, pool)
        for pool in pools
    }


def servers_of(server: Server, readings: Mapping[str, Reading], cell: Mapping[str, str]) -> int:
    """How many have this model; 0 where nobody says so."""
    return int(readings.get(SERVERS.promql(cell), {}).get((server.model,), 0))


def _served(read: Mapping[Signal, Reading], pool: Pool, server: Server) -> Sample | None:
    """A pool whose work a model server does: the jobs of ours that have leases, and what waits
    there beside them."""
    try:
        waiting, there, at_s, answered = (int(read[each][(server.model,)]) for each in OF_SERVERS)
    except (KeyError, ValueError, OverflowError):  # int() of what is no number
        return None
    if not server.leased:
        return _unleased(pool, server, waiting, there, answered, at_s)
    seen = _sample(read, pool)
    if seen is None:
        return None
    name, first = next(iter(seen.classes.items()))
    beside = max(0, waiting - sum(each.in_flight_jobs for each in seen.classes.values()))
    queued = replace(
        first,
        queued_jobs=first.queued_jobs + beside,
        queued_s=first.queued_s + beside * server.request_s,
    )
    return replace(
        seen,
        # If either stands still, nothing is known of now.
        at_s=min(seen.at_s, at_s),
        classes={**seen.classes, name: queued},
        busy=min(there, seen.jobs + beside),
    )


def _unleased(
    pool: Pool, server: Server, waiting: int, there: int, answered: int, at_s: float
) -> Sample:
    """All by what servers say. Of what they are at they say nothing: while requests wait, it is one
    in each."""
    at_work, came = there if waiting else 0, answered + waiting
    seen = ClassSample(
        queued_jobs=waiting,
        queued_s=waiting * server.request_s,
        in_flight_jobs=at_work,
        in_flight_s=at_work * server.request_s,
        arrived_jobs=came,
        arrived_s=came * server.request_s,
    )
    return Sample(at_s, dict.fromkeys(pool.objectives_s, seen), busy=at_work)


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
