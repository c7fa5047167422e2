"""`reelserve bench policies`: who goes first, ours against what other systems do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, Output, reporting, table

JOBS, SEEDS = 2000, 10
JOBS_QUICK, SEEDS_QUICK = 600, 3

SIMULATED = (
    "Simulated: one replica on a virtual clock, over step times measured on the tiny Wan in this "
    "process. The other systems' admission policies are emulated on the same executor, from their "
    "code; the systems themselves did not run."
)


def policies(
    load: Annotated[
        float, typer.Option(min=0.05, max=2, help="Solo work offered per second.")
    ] = 0.8,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs per policy.")] = SEEDS,
    jobs: Annotated[int, typer.Option(min=100, max=100_000, help="Jobs per run.")] = JOBS,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{SEEDS_QUICK} runs of {JOBS_QUICK} jobs each.")
    ] = False,
    costs_file: Annotated[
        Path | None,
        typer.Option(
            "--costs", exists=True, dir_okay=False, help="Take costs from an earlier --json result."
        ),
    ] = None,
    real_time: Annotated[
        float,
        typer.Option(
            min=0, max=3600, help="Also submit jobs to the real engine for so many seconds."
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare Reelserve's order of jobs with the policies of other systems, on one executor.

    10% long, 30% mid and 60% small clips arrive at random. A job is on time when it is done
    within 3 times the time it takes alone. Every policy meets the same arrivals with the same
    costs: fifo, serve_batch (@serve.batch), triton (its dynamic batcher), sglang and vllm_omni
    are emulated. --real-time runs reelserve and fifo also on the real engine in this process,
    for long enough that the jobs of that time end, and simulates the same jobs beside it.
    Exit code 1: the costs are not of this mix, or the engine fails.

    Examples:
      reelserve bench policies
      reelserve bench policies --quick --json | jq .slo_attainment
      reelserve bench policies --real-time 120
    """
    with reporting(as_json) as out:
        from loadtest.errors import LoadTestError
        from loadtest.policies.compare import compare
        from loadtest.policies.engine_run import measure
        from loadtest.summary import machine

        if quick:
            seeds, jobs = SEEDS_QUICK, JOBS_QUICK
        where = machine()
        try:
            costs = _read(costs_file) if costs_file else measure(_told(out))
            value = {
                "command": f"reelserve bench policies --load {load:g}",
                "seeds": seeds,
                "jobs": jobs,
                "load": load,
                **compare(costs, load, jobs, seeds, _told(out)),
                "costs": costs.to_json(),
                "note": SIMULATED,
                "machine": where,
            }
            if real_time:
                from loadtest.policies.engine_run import beside_real_time

                value["real_time"] = beside_real_time(costs, load, real_time, _told(out))
        except LoadTestError as error:
            raise CliError(f"the benchmark failed: {error}", code="benchmark_failed") from error
        out.result(value, *_report(value))


def _read(file: Path) -> Any:
    from loadtest.errors import LoadTestError
    from loadtest.policies.work import Costs

    try:
        value = json.loads(file.read_text())
        return Costs.from_json(value["costs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadTestError(f"{file} holds no result of this command: {error!r}") from error


def _told(out: Output) -> Any:
    return lambda text: out.note(f"… {text}")


SHOWN = {
    "slo_attainment": "on time",
    "small_p95_s": "small p95 s",
    "mid_p95_s": "mid p95 s",
    "long_p95_s": "long p95 s",
    "mean_s": "mean s",
    "batching_gain": "batching gain",
}


def _report(value: Mapping[str, Any]) -> Iterator[Any]:
    names = list(value["slo_attainment"])
    yield table(
        "",
        *SHOWN.values(),
        "on time, least to most",
        rows=[
            (
                name,
                *(_figure(figure, value[figure][name]) for figure in SHOWN),
                " to ".join(f"{each:.1%}" for each in value["spread"]["slo_attainment"][name]),
            )
            for name in names
        ],
    )
    target = value["target"]
    verdict = {name: "met" if met else "missed" for name, met in target["met"].items()}
    yield (
        f"\non time {value['slo_attainment']['reelserve']:.1%} (target "
        f"{target['slo_attainment']:.0%} and above all others: {verdict['slo_attainment']}); small "
        f"p95 {value['small_p95_vs_serve_batch']:g} times lower than serve_batch (target "
        f"{target['small_p95_vs_serve_batch']:g}: {verdict['small_p95_vs_serve_batch']}); long p95 "
        f"{value['long_p95_vs_fifo']:g} times fifo (target at most "
        f"{target['long_p95_vs_fifo']:g}: {verdict['long_p95_vs_fifo']})"
    )
    yield value["note"]
    if real := value.get("real_time"):
        yield table(
            f"{real['jobs']} jobs in {real['seconds']:g} s",
            "on time, engine",
            "on time, simulated",
            "mean s, engine",
            "mean s, simulated",
            "steps slower than measured",
            rows=[
                (
                    name,
                    f"{both['engine']['slo_attainment']:.1%}",
                    f"{both['simulated']['slo_attainment']:.1%}",
                    f"{both['engine']['mean_s']:.2f}",
                    f"{both['simulated']['mean_s']:.2f}",
                    f"{both['slowdown']:.2f} x",
                )
                for name, both in real["policies"].items()
            ],
        )
    at = value["machine"]
    yield "; ".join(
        [
            f"{value['command']}, {value['seeds']} runs of {value['jobs']} jobs",
            f"{at['measured_at']}, {at['cores']} cores of {at['cpu']}",
            f"load {at['load_before']} before",
            f"Python {at['python']}",
        ]
    )


def _figure(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith("attainment") else f"{value:.2f}"
