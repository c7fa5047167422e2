"""`reelserve bench autoscale`: how many replicas, by our policy and by what others do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from deployments.cli.output import JsonOption, reporting, table

SEEDS, SEEDS_QUICK = 6, 1
SECONDS_QUICK = 1200.0

SIMULATED = (
    "Simulated: one pool of at most 48 replicas on a virtual clock, with service times, cold "
    "starts and bursts fitted to a published trace of generated media. Reelserve's policy is "
    "production's; the others' rules are emulated, the systems did not run."
)


def autoscale(
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each.")] = SEEDS,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"One run each, of {SECONDS_QUICK / 60:.0f} minutes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare Reelserve's autoscaling with other rules, on the same arrivals.

    "Begun in time" is the part of jobs whose first step came within the objective of their class
    (30 s burst, 60 s standard, 900 s relaxed). The others are fixed_max (48 replicas, always),
    queue_length (a replica for each two queued jobs, down to the highest of five minutes, as KEDA
    through the HPA) and concurrency (a replica for each job there is, with windows of 60 s and
    6 s, as Knative). A turn is a change of direction: up after down, or down after up.

    Examples:
      reelserve bench autoscale
      reelserve bench autoscale --quick --json | jq .loads.steady
    """
    with reporting(as_json) as out:
        from loadtest.autoscale.compare import compare
        from loadtest.autoscale.work import SECONDS
        from loadtest.summary import machine

        seeds, seconds = (SEEDS_QUICK, SECONDS_QUICK) if quick else (seeds, SECONDS)
        where = machine()
        value = {
            "command": "reelserve bench autoscale",
            "seeds": seeds,
            "seconds": seconds,
            **compare(seeds, seconds, lambda text: out.note(f"… {text}")),
            "note": SIMULATED,
            "machine": where,
        }
        out.result(value, *_report(value))


SHOWN = {
    "attained": "begun in time",
    "attained_burst": "of burst",
    "attained_standard": "of standard",
    "replica_s": "replica-seconds",
    "utilization": "utilization",
    "starts_per_h": "starts an hour",
    "turns_per_h": "turns an hour",
    "most": "most",
}


def _report(value: Mapping[str, Any]) -> Iterator[Any]:
    for load, rules in value["loads"].items():
        yield table(
            load,
            *SHOWN.values(),
            rows=[
                (rule, *(_figure(name, figures[name]) for name in SHOWN))
                for rule, figures in rules.items()
            ],
        )
    yield value["note"]
    at = value["machine"]
    yield "; ".join(
        [
            f"{value['command']}, {value['seeds']} runs of {value['seconds']:g} s each",
            f"{at['measured_at']}, {at['cores']} cores of {at['cpu']}",
            f"Python {at['python']}",
        ]
    )


def _figure(name: str, value: float) -> str:
    if name.startswith("attained") or name == "utilization":
        return f"{value:.1%}"
    return f"{value:,.0f}" if name == "replica_s" else f"{value:.1f}"
