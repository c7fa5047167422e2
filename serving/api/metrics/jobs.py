"""Jobs of each pool, as metrics: what waits and runs, and how those that ended fared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serving.jobs import BUCKETS_S, TERMINAL, Histogram, PoolState
from serving.plan.classes import CLASSES, Offered

BY_CLASS = ["model", "class"]

REFUSALS = (
    *(
        "rate",
        "own",
        "streams",
        "pool",
        "generations",
        "gpu",
        "priority",
        "credits",
        "max_credits",
        "debt",
    ),
    "mismatch",
)
"""Reasons that ``submit.lua`` has."""
EVENTS = (
    *("yielded", "preempted", "lease_lost", "resumed", "resumed_from_memory"),
    *("checkpoint_corrupt", "checkpoint_foreign", "checkpoint_missing"),
)
"""Those that scripts count. Each is there from the start, at 0: a series that begins with its first
event shows Prometheus no increase."""
TIMES = {
    "wait": (
        "reelserve_queue_wait_seconds",
        "From submission to the first lease, of jobs that were leased.",
    ),
    "first_step": (
        "reelserve_first_step_seconds",
        "From submission to the first denoising step, of jobs that made one.",
    ),
    "done": (
        "reelserve_job_duration_seconds",
        "From submission to the stored clip, of jobs that were completed.",
    ),
}
"""Histograms, by the name they have in Redis."""
TALLIES = {
    "prompt_cache_hits": "Prompts whose embeddings the replica still had.",
    "prompt_cache_misses": "Prompts that had to be encoded.",
}
"""What replicas count, by the name they count it under."""


class JobCollector(Collector):
    """Each pool as of one moment; ``models`` are those of the pools."""

    def __init__(self, pools: Mapping[str, PoolState], models: Mapping[str, Offered]) -> None:
        self._pools = pools
        self._models = models

    def collect(self) -> Iterator[Metric]:
        yield from self._backlog()
        yield from self._admission()
        yield from self._times()
        yield self._objectives()
        yield from self._endings()

    def _backlog(self) -> Iterator[Metric]:
        by_state = [*BY_CLASS, "state"]
        jobs = GaugeMetricFamily(
            "reelserve_backlog_jobs",
            "Jobs that wait for a replica (queued), wait for users who run as many as they may "
            "(parked), or are leased to a replica (in_flight).",
            labels=by_state,
        )
        work = GaugeMetricFamily(
            "reelserve_backlog_gpu_seconds",
            "Device time that is left of these jobs, by their estimates.",
            labels=by_state,
        )
        oldest = GaugeMetricFamily(
            "reelserve_queue_oldest_wait_seconds",
            "Age of the oldest job that waits and may be leased. Where hundreds of jobs of other "
            "classes are older, the age of the latest of these, which is more.",
            labels=BY_CLASS,
        )
        for model, pool in self._pools.items():
            for each in CLASSES:
                backlog = pool.backlog[each]
                jobs.add_metric([model, each, "queued"], backlog.queued_jobs)
                jobs.add_metric([model, each, "parked"], backlog.parked_jobs)
                jobs.add_metric([model, each, "in_flight"], backlog.in_flight_jobs)
                work.add_metric([model, each, "queued"], backlog.queued_ms / 1000)
                work.add_metric([model, each, "parked"], backlog.parked_ms / 1000)
                work.add_metric([model, each, "in_flight"], backlog.in_flight_ms / 1000)
                oldest.add_metric([model, each], backlog.oldest_ms / 1000)
        yield from (jobs, work, oldest)

    def _admission(self) -> Iterator[Metric]:
        work = CounterMetricFamily(
            "reelserve_arrivals_gpu_seconds",
            "Device time of accepted jobs, as estimated when they were submitted.",
            labels=BY_CLASS,
        )
        admitted = CounterMetricFamily(
            "reelserve_jobs_admitted", "Jobs that were accepted.", labels=BY_CLASS
        )
        refused = CounterMetricFamily(
            "reelserve_jobs_refused",
            "Submissions that were refused: for the rate (rate), too many waiting jobs of their "
            "own (own) or of all (pool), the day's allowance (generations, gpu), a class that the "
            "tier does not give (priority), credits that are missing (credits), owed (debt) or "
            "more than the caller said (max_credits), an Idempotency-Key of another body "
            "(mismatch).",
            labels=["model", "reason"],
        )
        replayed = CounterMetricFamily(
            "reelserve_submissions_replayed",
            "Submissions that were repeated, and answered with the job they had made.",
            labels=["model"],
        )
        for model, pool in self._pools.items():
            for each in CLASSES:
                work.add_metric([model, each], pool.backlog[each].arrived_ms / 1000)
                admitted.add_metric([model, each], pool.backlog[each].arrived_jobs)
            for reason in REFUSALS:
                refused.add_metric([model, reason], pool.refused.get(reason, 0))
            replayed.add_metric([model], pool.refused.get("replayed", 0))
        yield from (work, admitted, refused, replayed)

    def _times(self) -> Iterator[Metric]:
        for name, (metric, text) in TIMES.items():
            family = HistogramMetricFamily(metric, text, labels=BY_CLASS)
            for model, pool in self._pools.items():
                for each in CLASSES:
                    found = pool.times.get((each, name), Histogram())
                    family.add_metric([model, each], _buckets(found), found.sum_s)
            yield family

    def _objectives(self) -> Metric:
        family = CounterMetricFamily(
            "reelserve_slo_jobs",
            "Jobs that ended and made their first step in time (first_step), or were done in time "
            "after it (done), or not. Failed and expired ones missed both; cancelled ones are not "
            "counted.",
            labels=[*BY_CLASS, "objective", "outcome"],
        )
        for model, pool in self._pools.items():
            for each, policy in self._models[model].classes.items():
                for objective in ("first_step", "done"):
                    if objective == "first_step" and policy.first_step_s is None:
                        continue
                    for outcome in ("attained", "missed"):
                        jobs = pool.slo.get((each, objective, outcome), 0)
                        family.add_metric([model, each, objective, outcome], jobs)
        return family

    def _endings(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "reelserve_jobs_ended",
            "Jobs that reached a terminal state.",
            labels=["model", "status"],
        )
        events = CounterMetricFamily(
            "reelserve_job_events",
            "What happened to running jobs: yielded, preempted, lease_lost, resumed, "
            "resumed_from_memory (also counted as resumed), and checkpoint_… for checkpoints that "
            "could not be used.",
            labels=["model", "event"],
        )
        lost = CounterMetricFamily(
            "reelserve_steps_lost",
            "Denoising steps that were done and went with a lease that ran out, or with a "
            "checkpoint that could not be used.",
            labels=["model"],
        )
        redone = CounterMetricFamily(
            "reelserve_steps_redone",
            "Denoising steps that a job had done when it was handed back, and that its checkpoint "
            "did not save.",
            labels=["model"],
        )
        tallies = {
            name: CounterMetricFamily(f"reelserve_{name}", text, labels=["model"])
            for name, text in TALLIES.items()
        }
        for model, pool in self._pools.items():
            for state in sorted(TERMINAL):
                ended.add_metric([model, state], pool.ended.get(state, 0))
            for event in EVENTS:
                events.add_metric([model, event], pool.counts.get(event, 0))
            lost.add_metric([model], pool.steps.get("lost", 0))
            redone.add_metric([model], pool.steps.get("redone", 0))
            for name, tally in tallies.items():
                tally.add_metric([model], pool.tallies.get(name, 0))
        yield from (ended, events, lost, redone, *tallies.values())


def _buckets(found: Histogram) -> list[tuple[str, float]]:
    """As Prometheus has them: each with all that are in those below."""
    bounds = [*map(floatToGoString, BUCKETS_S), "+Inf"]
    return list(zip(bounds, accumulate(found.counts), strict=True))
