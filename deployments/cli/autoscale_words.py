"""A decision of the autoscaler in words: what it saw, what it computed, what bound it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType

from deployments.cli.autoscale_formula import formula
from deployments.cli.output import counted, facts, table

OLD_S = 30.0
"""A decision that is older says that nobody decides any more."""

HEADS = ("class", "queued", "in flight", "parked", "oldest wait", "objective")
BOUNDS = {
    "need": "the work itself",
    "min_replicas": "min_replicas",
    "max_replicas": "max_replicas",
    "scaling_delay": "scaling_delay_s: the need is too new",
    "keep_alive": "keep_alive_s: more was needed a moment ago",
    "busy": "replicas that run something are not given up",
    "spike": "a spike: nothing is given back",
    "slew": "not so many at once",
    "budget": "the budget that all pools share",
    "backoff": "replicas that failed to start are tried one at a time",
    "hold": "no fresh sample: nothing is changed",
}

Pool = Mapping[str, Any]


def explained(pool: Pool) -> Iterator[RenderableType]:
    """A pool as ``/v1/admin/autoscale`` shows it, for a person."""
    decision = pool["decision"]
    yield heading(pool)
    if pool["scaling"] is None or decision is None:
        return
    if is_old(pool):
        yield f"  The autoscaler does not decide any more: this is {age(decision['age_s'])} old."
    yield f"  {decision['why']}"
    if decision["classes"]:
        yield ""
        yield table(*HEADS, rows=map(_class, decision["classes"]))
    else:
        yield "  What is queued was never seen."
    yield facts(
        [
            ("server", _server(pool)),
            ("formula", formula(decision)),
            ("bound", bound(decision)),
            ("retry", retry(decision)),
            ("work", _flow(decision["demand"])),
            ("sample", _sample(decision)),
            ("limits", _limits(decision)),
        ]
    )


def heading(pool: Pool) -> str:
    """How many replicas, in a line; or why there is nothing to say."""
    decision, name = pool["decision"], pool["model"]
    if pool["scaling"] is None:
        return (
            f"{name}: autoscaling is off (no `scaling` in its catalog entry, or "
            "REELSERVE_AUTOSCALE_ENABLED is false); always "
            f"{counted(pool['replicas'], 'replica')}"
        )
    if decision is None:
        return f"{name}: no decision yet; is the application running?"
    target, before = decision["target"], decision["before"]
    if pool.get("server"):
        return (
            f"{name}: {counted(target, 'server')} should be there, {before} are; "
            f"decided {age(decision['age_s'])} ago"
        )
    was = f"instead of {before}" if target != before else "as before"
    return (
        f"{name}: {counted(target, 'replica')}, {was}; {decision['ready']} ready; "
        f"decided {age(decision['age_s'])} ago"
    )


def _server(pool: Pool) -> str | None:
    """Who does the work, and who scales it."""
    server = pool.get("server")
    if not server:
        return None
    return (
        f"'{server['model']}' at {server['url']}, {server['request_s']:.2f} s for a request; "
        "whoever runs it scales it, by reelserve_autoscale_target_replicas"
    )


def is_old(pool: Pool) -> bool:
    decision = pool["decision"]
    return decision is not None and decision["age_s"] > OLD_S


def age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def bound(decision: Mapping[str, Any]) -> str:
    name = decision["bound"]
    wanted, target = decision["wanted"], decision["target"]
    gives = f"{target}" if wanted == target else f"{target}, where {wanted} would be wanted"
    return f"{name}, {BOUNDS.get(name, name)} → {gives}"


def retry(decision: Mapping[str, Any]) -> str | None:
    """When the next replica is tried, from now."""
    if decision["retry_in_s"] is None:
        return None
    left_s = decision["retry_in_s"] - decision["age_s"]
    when = f"in {age(left_s)}" if left_s > 0 else "now"
    failures = (decision["sample"] or {}).get("start_failures", 0)
    return f"the next replica is tried {when}; the last {failures} failed to start"


def _class(each: Mapping[str, Any]) -> tuple[object, ...]:
    objective_s = each["objective_s"]
    return (
        each["class"],
        f"{counted(each['queued_jobs'], 'job')}, {each['queued_s']:.1f} s",
        f"{counted(each['in_flight_jobs'], 'job')}, {each['in_flight_s']:.1f} s",
        f"{each['parked_s']:.1f} s",
        f"{each['oldest_wait_s']:.1f} s",
        "none" if objective_s is None else f"{objective_s:g} s",
    )


def _flow(demand: Mapping[str, Any]) -> str:
    spike = "; a spike" if demand["spike"] else ""
    jobs = counted(demand["jobs"], "job")
    return (
        f"{demand['work_s']:.1f} GPU-s in {jobs}; GPU-s that come each second: "
        f"{demand['fast']:.2f} lately, {demand['slow']:.2f} in the long run, "
        f"{demand['forecast']:.2f} reckoned with{spike}"
    )


def _sample(decision: Mapping[str, Any]) -> str:
    sample, age_s = decision["sample"], decision["sample_age_s"]
    if sample is None or age_s is None:
        return "there never was one"
    cold_s = sample["cold_start_s"]
    measured = "not measured yet" if cold_s is None else f"{cold_s:.1f} s"
    return (
        f"{age(age_s)} old then; {counted(sample['busy'], 'replica')} busy, cold start {measured}"
    )


def _limits(decision: Mapping[str, Any]) -> str | None:
    scaling, budget = decision["scaling"], decision["budget"]
    if scaling is None:
        return None
    shared = [f"{budget[name]:g} {name}" for name in ("gpus", "cpus") if budget[name]]
    together = f"; all pools together {' and '.join(shared)}" if shared else ""
    return (
        f"{scaling['min_replicas']} to {scaling['max_replicas']} replicas, buffer "
        f"{scaling['buffer']}, keep_alive_s {scaling['keep_alive_s']:g}, scaling_delay_s "
        f"{scaling['scaling_delay_s']:g}{together}"
    )
