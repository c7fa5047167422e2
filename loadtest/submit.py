"""`reelserve bench submit`: how long a submission takes, and how many a second are possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.open_loop import Outcome, Plan, run
from loadtest.summary import ratios, spread_ms

TARGET_P50_MS = 10.0
WARM_UP_S = 2.0
CLOSED_S_MAX = 5.0
CLOSED_CONNECTIONS = 32
JOB = {"prompt": "a red ball moving right", "seconds": 1, "steps": 4}


@dataclass(frozen=True)
class Measured:
    """The figures of one kind of request, and the ids of the jobs it made."""

    figures: dict[str, float]
    details: dict[str, Any]
    ids: list[str]

    @property
    def errors(self) -> int:
        return sum(sum(loop["errors"].values()) for loop in self.details.values())


def measure_submit(
    url: str, key: str, rate_per_s: float, seconds: float, progress: Callable[[str], None]
) -> Measured:
    """Submissions. :class:`LoadTestError` when none succeeds, or the load generator fails."""
    plan = Plan(url, key, "POST", "/v1/videos", seconds, fields=JOB)
    return _measure(plan, rate_per_s, "submissions", progress)


def measure_healthz(
    url: str, key: str, rate_per_s: float, seconds: float, progress: Callable[[str], None]
) -> Measured:
    """The baseline: requests that do nothing, by the same way and at the same rate."""
    plan = Plan(url, key, "GET", "/healthz", seconds)
    return _measure(plan, rate_per_s, "baseline, GET /healthz", progress)


def compare(measured: Measured, baseline: Measured) -> dict[str, Any]:
    """The benchmark's result, but for where it was measured."""
    return {
        **measured.figures,
        "baseline": {"request": "GET /healthz", **baseline.figures},
        "ratio": ratios(measured.figures, baseline.figures),
        "target": {
            "p50_ms": TARGET_P50_MS,
            "met": measured.figures["p50_ms"] <= TARGET_P50_MS,
        },
        "phases": {"submit": measured.details, "baseline": baseline.details},
    }


def _measure(plan: Plan, rate_per_s: float, what: str, progress: Callable[[str], None]) -> Measured:
    warm = run(replace(plan, seconds=WARM_UP_S, rate_per_s=rate_per_s))
    progress(f"{what}: open loop at {rate_per_s:g} a second for {plan.seconds:g} s")
    opened = run(replace(plan, rate_per_s=rate_per_s))
    if not opened.latencies_ms:
        raise LoadTestError(f"none of {what} succeeded: {opened.errors}")
    closed_s = min(plan.seconds, CLOSED_S_MAX)
    progress(f"{what}: {CLOSED_CONNECTIONS} connections, as fast as they can, {closed_s:g} s")
    closed = run(replace(plan, seconds=closed_s, connections=CLOSED_CONNECTIONS))
    return Measured(
        figures={**spread_ms(opened.latencies_ms), "per_s_max": round(closed.per_s, 1)},
        details={"open_loop": _details(opened), "closed_loop": _details(closed)},
        ids=warm.ids + opened.ids + closed.ids,
    )


def _details(outcome: Outcome) -> dict[str, Any]:
    return {
        "answered": len(outcome.latencies_ms),
        "errors": outcome.errors,
        **(spread_ms(outcome.latencies_ms) if outcome.latencies_ms else {}),
        "per_s": round(outcome.per_s, 1),
        "sent_late_p99_ms": outcome.sent_late_p99_ms,
        "generator_cpu_share": outcome.generator_cpu_share,
    }
