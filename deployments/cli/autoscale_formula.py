"""The formula of a decision with its figures put in, from what ``/v1/admin/autoscale`` shows.

It follows :mod:`autoscale.demand`. The figures are rounded, and the server may be of another
version: the number behind the arrow is the policy's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoscale.demand import CLAMP, UTILIZATION, Backlog
from deployments.cli.output import counted

Decision = Mapping[str, Any]


def formula(decision: Decision) -> str:
    """The term that gave the need, and what the operator adds to it."""
    if decision["bound"] == "hold":
        return f"none, for lack of a fresh sample → {decision['target']}"
    need = decision["demand"]["need"]
    buffer = (decision["scaling"] or {}).get("buffer", 0)
    text = f"{_term(decision)} → {need}"
    return f"{text}, and a buffer of {buffer} → {need + buffer}" if buffer else text


def _term(decision: Decision) -> str:
    demand = decision["demand"]
    match demand["by"]:
        case "idle":
            return "nothing to do"
        case "sustain":
            return (
                f"{demand['slow']:.2f} GPU-s that come each second / ({demand['rate']:.2f} that a "
                f"replica does × {UTILIZATION:g})"
            )
        case "jobs":
            jobs = counted(demand["jobs"], "job")
            return f"no more than jobs by the time that a new one is ready: {jobs} now"
        case "horizon" if _has_objective(decision):
            return _horizon(decision)
        case "drain" if _has_objective(decision):
            return _drain(decision)
        case "drain":
            return f"at least one, for {counted(demand['jobs'], 'job')}"
        case other:
            return str(other)


def _has_objective(decision: Decision) -> bool:
    critical = decision["demand"]["critical"]
    return any(
        each["class"] == critical and each["objective_s"] is not None
        for each in decision["classes"]
    )


def _horizon(decision: Decision) -> str:
    """What is left by the time that a new replica is there begins within the objective."""
    demand, (ahead, whose, objective_s, _) = decision["demand"], _ahead(decision)
    cold = f"{demand['cold_start_s']:.1f} s"
    starting = " − what those that start do by then" if _starting(decision) else ""
    return (
        f"({_work(ahead, whose, objective_s, demand['rate'])} + {demand['forecast']:.2f} that come "
        f"each second × {cold} of cold start / {demand['rate']:.2f} − {decision['ready']} ready × "
        f"{cold}{starting}) / {objective_s:g} s"
    )


def _drain(decision: Decision) -> str:
    """What waits begins within the objective; replicas that are not ready come later."""
    demand, ready = decision["demand"], decision["ready"]
    cold_s = demand["cold_start_s"]
    ahead, whose, objective_s, waited_s = _ahead(decision)
    left_s = max(objective_s - waited_s, CLAMP * objective_s)
    work = _work(ahead, whose, left_s, demand["rate"])
    left = f"{left_s:.1f} s left of {objective_s:g} s"
    if ahead.within(left_s, demand["rate"]) <= ready * left_s:
        return f"{work} / {left}"
    lead = f"({left} − {cold_s:.1f} s of cold start)"
    least_s = CLAMP * objective_s
    if left_s - cold_s < least_s:
        lead = f"{least_s:.1f} s, as {cold_s:.1f} s of cold start leave less of the objective"
    starting = _starting(decision)
    if starting:
        there = f"{ready} ready, {starting} starting"
        return f"{there} + ({work} − what these do in {left_s:.1f} s) / {lead}"
    if ready:
        return f"{ready} ready + ({work} − {ready} × {left_s:.1f} s) / {lead}"
    return f"{work} / {lead}"


def _work(ahead: Backlog, whose: str, seconds: float, rate: float) -> str:
    """Seconds of replicas. A job takes no more than one of them."""
    gpu_s = ahead.queued_s + ahead.in_flight_s
    work_s = ahead.within(seconds, rate)
    if work_s < gpu_s / rate - 0.05:
        return f"{work_s:.1f} s, one replica a job, of {gpu_s:.1f} GPU-s of {whose}"
    return f"{gpu_s:.1f} GPU-s of {whose} / {rate:.2f}"


def _starting(decision: Decision) -> int:
    return max(0, int(decision["before"] - decision["ready"]))


def _ahead(decision: Decision) -> tuple[Backlog, str, float, float]:
    """Of the class that decided: its work and that of those before it, their names, its objective
    and its oldest wait."""
    classes = decision["classes"]
    names = [each["class"] for each in classes]
    last = names.index(decision["demand"]["critical"])
    parts = ("queued_s", "queued_jobs", "in_flight_s", "in_flight_jobs")
    sums = {part: sum(each[part] for each in classes[: last + 1]) for part in parts}
    own = classes[last]
    whose = " and ".join(names[: last + 1])
    return Backlog(**sums), whose, own["objective_s"], own["oldest_wait_s"]
