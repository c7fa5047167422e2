"""`reelserve bench gpu`: the step engine with Wan 2.1 1.3B's architecture on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, reporting, table, verdicts
from serving.plan.errors import ConfigError

if TYPE_CHECKING:
    from loadtest.engine.gpu import GpuPlan

MODEL, DEMO = "wan2.1-t2v-1.3b", "demo-wan"


def gpu(
    device: Annotated[str, typer.Option(help="cuda, cuda:N or cpu.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A tiny model and clips, to try this on a CPU.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(help="Of the large clip: WIDTHxHEIGHTxFRAMES.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure compiled blocks as well.")
    ] = True,
    peak_tflops: Annotated[
        float, typer.Option(min=1, help="The device's, dense, in bfloat16: an H100's, an H200's.")
    ] = 989.0,
    budget_s: Annotated[
        float, typer.Option(min=1, help="Begin nothing more after so many seconds.")
    ] = 240.0,
    out: Annotated[
        Path | None, typer.Option(help="Write the report there too, after each part of it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the step engine on a GPU, in this process, with random weights.

    The architecture of Wan 2.1 1.3B, loaded as its catalog entry says, but for the attention and
    the compiler, of which each kind is measured: seconds of a step with guidance and the share of
    the device's peak, for diffusers' own loop, one by hand, and the engine; what batching brings
    by tokens; what checkpoints and previews cost; whether outputs agree. What is compared takes
    turns. Parts that fail or find no time left are named. Exit code 1: outputs disagree, or a
    part that compares them could not be run.

    Examples:
      reelserve bench gpu --out gpu.json
      reelserve bench gpu --device cpu --tiny --no-compile --json | jq .outputs
    """
    with reporting(as_json) as report:
        from loadtest.engine.gpu import bench_gpu
        from loadtest.summary import machine
        from serving.models.weights import find_device
        from serving.plan.catalog import load_catalog

        plan = _plan(shape, quick=quick, tiny=tiny, compiled=compiled, peak_tflops=peak_tflops)
        package = Path(str(files("deployments")))
        catalog = load_catalog([package / "catalog"])
        try:
            where = find_device(MODEL, device)
        except ConfigError as error:
            raise CliError(error.message, code="no_device") from None
        at = machine()
        found = bench_gpu(
            catalog.resolve(MODEL),
            catalog.resolve(DEMO),
            package / "demo_models" / "weights",
            plan,
            where,
            lambda text: report.note(f"… {text}"),
            out=out,
            budget_s=budget_s,
        )
        value = {"command": "reelserve bench gpu", **found, "machine": at}
        report.result(value, *_report(value))
        if not value["outputs"]["agree"]:
            raise typer.Exit(1)


def _plan(
    shape: str | None, *, quick: bool, tiny: bool, compiled: bool, peak_tflops: float
) -> GpuPlan:
    from loadtest.engine.flops import Shape
    from loadtest.engine.gpu import GpuPlan

    plan = GpuPlan.tiny() if tiny else GpuPlan()
    plan = replace(plan, compiled=compiled, peak_tflops=peak_tflops)
    if shape is not None:
        try:
            plan = replace(plan, large=Shape.of(shape))
        except ValueError as error:
            raise CliError(f"--shape: {error}", code="invalid_shape") from None
    return plan.quick() if quick else plan


def _report(value: Mapping[str, Any]) -> Iterator[Any]:
    yield from _kernels(value)
    yield from _batches(value)
    yield verdicts(value["targets"])
    for name, section in value["sections"].items():
        if section["state"] != "done":
            yield f"{name}: {section['state']}: {section['error']}"
    for name, error in value["left_out"].items():
        yield f"{name}: {error}"
    wrong = [name for name, agrees in value["outputs"]["checks"].items() if not agrees]
    yield (
        f"Outputs DISAGREE, or were not compared: {', '.join(wrong)}" if wrong else "Outputs agree."
    )
    at, on = value["machine"], value["device"]
    yield (
        f"{value['command']}: {at['measured_at']}, {on['name']}, {at['cores']} cores of "
        f"{at['cpu']}; torch {on['torch']}; {value['mode']['entry']} as it is has "
        f"{value['mode']['kernel']} kernels"
    )


def _kernels(value: Mapping[str, Any]) -> Iterator[Any]:
    for name, found in value.items():
        if "kernels at " in name:
            yield table(
                name,
                "s a step",
                "of the peak",
                "over the plain library",
                rows=[
                    (
                        variant,
                        f"{each['step_s']:.4f}",
                        f"{each['mfu']:.1%}",
                        f"{each.get('over_library', float('nan')):.3f} x",
                    )
                    for variant, each in found["variants"].items()
                ],
            )
            yield ""


def _batches(value: Mapping[str, Any]) -> Iterator[Any]:
    curves = {name: each for name, each in value.items() if name.startswith("batch at ")}
    counts = list(dict.fromkeys(count for each in curves.values() for count in each["relative"]))
    if counts:
        yield table(
            "job-steps a second over one job's",
            "latent tokens",
            *(f"{count} jobs" for count in counts),
            rows=[
                (name, each["tokens"], *(each["relative"].get(count, "-") for count in counts))
                for name, each in curves.items()
            ],
        )
        yield ""
