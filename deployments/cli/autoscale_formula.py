"""The formula of a decision with its figures put in, from what ``/v1/admin/autoscale`` shows.

It follows :mod:`autoscale.demand`. The figures are rounded, and the server may be of another
version: the number behind the arrow is the policy's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoscale.demand import CLAMP, UTILIZATION
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
    demand, ready = decision["demand"], decision["ready"]
    rate, cold_s = f"{demand['rate']:.2f}", f"{demand['cold_start_s']:.1f} s"
    work_s, whose, objective_s, _ = _ahead(decision)
    return (
        f"({work_s:.1f} GPU-s of {whose} + {demand['forecast']:.2f} that come each second × "
        f"{cold_s} of cold start − {ready} ready × {rate} × {cold_s}) / "
        f"({rate} × {objective_s:g} s)"
    )


def _drain(decision: Decision) -> str:
    """What waits begins within the objective; replicas that are not ready come later."""
    demand, ready, cold_s = (
        decision["demand"],
        decision["ready"],
        decision["demand"]["cold_start_s"],
    )
    work_s, whose, objective_s, waited_s = _ahead(decision)
    left_s = max(objective_s - waited_s, CLAMP * objective_s)
    lead_s = max(left_s - cold_s, CLAMP * objective_s)
    work = f"{work_s:.1f} GPU-s of {whose} / {demand['rate']:.2f}"
    left = f"{left_s:.1f} s left of {objective_s:g} s"
    if work_s / demand["rate"] <= ready * left_s:
        return f"{work} / {left}"
    lead = f"({left} − {cold_s:.1f} s of cold start)"
    if left_s - cold_s < lead_s:
        lead = f"{lead_s:.1f} s, as {cold_s:.1f} s of cold start leave less of the objective"
    if not ready:
        return f"{work} / {lead}"
    return f"{ready} ready + ({work} − {ready} × {left_s:.1f} s) / {lead}"


def _ahead(decision: Decision) -> tuple[float, str, float, float]:
    """Of the class that decided: its work and that of those before it, their names, its objective
    and its oldest wait."""
    classes, critical = decision["classes"], decision["demand"]["critical"]
    names = [each["class"] for each in classes]
    last = names.index(critical)
    ahead = classes[: last + 1]
    work_s = sum(each["queued_s"] + each["in_flight_s"] for each in ahead)
    own = classes[last]
    return work_s, " and ".join(names[: last + 1]), own["objective_s"], own["oldest_wait_s"]
