"""What a spike showed, from what was seen: plain values and arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from loadtest.summary import percentile


@dataclass(frozen=True)
class Look:
    """The pool at ``t_s`` seconds after the spike began. The last four are the autoscaler's, None
    where nobody asked it; ``work_s`` is what waits and runs, in seconds of a device."""

    t_s: float
    ready: int
    queued: int
    in_progress: int
    target: int | None = None
    wanted: int | None = None
    bound: str | None = None
    work_s: float | None = None

    def with_decision(self, decision: Mapping[str, Any]) -> Look:
        """Together with a decision as ``/v1/admin/autoscale`` shows it."""
        work_s = sum(each["queued_s"] + each["in_flight_s"] for each in decision["classes"])
        return replace(
            self,
            target=decision["target"],
            wanted=decision["wanted"],
            bound=decision["bound"],
            work_s=round(work_s, 3),
        )


@dataclass
class Outcome:
    """All that was seen. ``jobs`` are those that ended, as the API shows them; ``refused`` is by
    code, ``errors`` by message. ``objectives`` counts by objective and outcome what all jobs of the
    model did meanwhile. ``floor`` replicas stay when there is nothing to do."""

    looks: Sequence[Look]
    jobs: Sequence[Mapping[str, Any]]
    unfinished: int
    refused: Mapping[str, int]
    errors: Mapping[str, int]
    last_job_s: float | None
    floor: int
    timed_out: bool
    until_idle: bool
    objectives: Mapping[str, Mapping[str, float]] | None = None


def summarise(outcome: Outcome) -> dict[str, Any]:
    """The load test's result. It is ``ok`` when every job that was accepted made a clip, nothing
    went wrong but refusals, and, where that was waited for, the pool came back to its floor."""
    statuses = Counter(job["status"] for job in outcome.jobs)
    completed = statuses.pop("completed", 0)
    ended_badly = sum(statuses.values())
    return {
        "ok": not (ended_badly or outcome.unfinished or outcome.errors or outcome.timed_out),
        "timed_out": outcome.timed_out,
        "jobs": {
            "completed": completed,
            "failed": ended_badly,
            "refused": sum(outcome.refused.values()),
            "unfinished": outcome.unfinished,
            "attempts_max": max((job["attempts"] for job in outcome.jobs), default=0),
        },
        "queue_wait_s": _spread(outcome.jobs, "queued_s"),
        "total_s": _spread(outcome.jobs, "total_s"),
        "objectives": outcome.objectives and _shares(outcome.objectives),
        "replicas": replicas(outcome.looks, outcome.floor, outcome.last_job_s),
        "last_job_s": _rounded(outcome.last_job_s),
        "refused": dict(outcome.refused),
        "errors": [{"error": error, "count": count} for error, count in outcome.errors.items()],
        "timeline": [asdict(look) for look in outcome.looks],
    }


def ready_before(looks: Sequence[Look]) -> int:
    """Replicas in the quiet; at the first look where there was none."""
    quiet = [look for look in looks if look.t_s < 0]
    return (quiet[-1] if quiet else looks[0]).ready if looks else 0


def replicas(looks: Sequence[Look], floor: int, last_job_s: float | None) -> dict[str, Any]:
    """How the pool followed, in seconds after the spike began: when there was first one more than
    before, when there first were as many as there ever were, and when there were only ``floor``
    again after the last job had ended. None for what did not happen."""
    before = ready_before(looks)
    during = [look for look in looks if look.t_s >= 0]
    peak = max((look.ready for look in during), default=before)
    grown = [look for look in during if look.ready > before]
    at_peak = next((look.t_s for look in grown if look.ready == peak), None)
    last_s = float("inf") if last_job_s is None else last_job_s
    back = next((look.t_s for look in during if look.t_s >= last_s and look.ready <= floor), None)
    return {
        "before": before,
        "floor": floor,
        "peak": peak,
        "first_added_s": grown[0].t_s if grown else None,
        "last_added_s": at_peak,
        "back_at_floor_s": back,
    }


def _spread(jobs: Sequence[Mapping[str, Any]], name: str) -> dict[str, float] | None:
    """Of the jobs that made a clip, by the server's own record."""
    values = [job["timings"][name] for job in jobs if job["status"] == "completed"]
    if not values:
        return None
    return {
        "p50": round(percentile(values, 50), 3),
        "p95": round(percentile(values, 95), 3),
        "max": round(max(values), 3),
    }


def _shares(objectives: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Each with its share of jobs that attained it; None where no job had it."""
    found = {}
    for name, outcomes in objectives.items():
        attained, missed = (round(outcomes.get(each, 0)) for each in ("attained", "missed"))
        share = round(attained / (attained + missed), 4) if attained + missed else None
        found[name] = {"attained": attained, "missed": missed, "share": share}
    return found


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
