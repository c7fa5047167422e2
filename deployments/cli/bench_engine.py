"""`reelserve bench engine`: the step engine against the library's own loop, in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, reporting, table, verdicts

MODEL = "demo-wan"


def engine(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repetitions: half a minute, wider errors.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the step engine against diffusers' own loop, in this process.

    The demo model's weights and catalog entry (its batch sizes are the shipped ones), on the CPU.
    vs_raw_loop: 16 jobs with 4 to 12 steps and mixed guidance scales, text to final latents, over
    WanPipeline job by job. overhead_b1: one job against a loop written by hand. lone_job_ratio:
    one job in the shipped batch over the smallest. checkpoint_slowdown: a snapshot after every
    step over none, as a share. Measured and baseline take turns. Exit code 1: outputs disagree.

    Examples:
      reelserve bench engine
      reelserve bench engine --quick --json | jq .vs_raw_loop
    """
    with reporting(as_json) as out:
        import torch

        from loadtest.engine import bench_engine
        from loadtest.engine.driver import EngineFailed
        from loadtest.engine.figures import Plan
        from loadtest.summary import machine
        from serving.plan.catalog import load_catalog

        where = machine()
        # As a replica on a machine of its own does.
        torch.set_num_threads(
            len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        )
        model = load_catalog([Path(str(files("deployments") / "catalog"))]).resolve(MODEL)
        try:
            found = bench_engine(
                model, Plan.quick() if quick else Plan(), lambda text: out.note(f"… {text}")
            )
        except EngineFailed as error:
            raise CliError(f"the benchmark failed: {error}", code="benchmark_failed") from error
        value = {
            "command": "reelserve bench engine" + (" --quick" if quick else ""),
            **found,
            "machine": where,
        }
        out.result(value, *_report(value))
        if not value["outputs"]["agree"]:
            raise typer.Exit(1)


def _report(value: Mapping[str, Any]) -> Iterator[Any]:
    versus, alone = value["detail"]["vs_raw_loop"], value["detail"]["overhead_b1"]
    yield table(
        "latent tokens",
        "raw loop s",
        "engine s",
        "times faster",
        "spread",
        rows=[
            (
                tokens,
                f"{each['baseline_s']:.2f}",
                f"{each['measured_s']:.2f}",
                f"{each['median']:.2f}",
                f"{each['min']:.2f} to {each['max']:.2f}",
            )
            for tokens, each in versus.items()
        ],
    )
    yield ""
    yield table(
        "latent tokens",
        "by hand ms/step",
        "engine at batch 1",
        "more ms/step",
        "lone job in shipped batch",
        rows=[
            (
                tokens,
                f"{each['hand_ms_per_step']:.2f}",
                f"{each['ratio']:.3f} x",
                f"{each['ms_per_step']:.3f}",
                f"{value['lone_job_ratio'][tokens]:.2f} x",
            )
            for tokens, each in alone.items()
        ],
    )
    yield ""
    yield verdicts(value["targets"])
    outputs, mode, at = value["outputs"], value["mode"], value["machine"]
    agree = "agree" if outputs["agree"] else "DISAGREE"
    yield (
        f"\nOutputs {agree} with the pipeline's: at most {outputs['max_abs_difference']:.1e} apart "
        f"({outputs['tolerance']:g} allowed)."
    )
    yield (
        f"{value['command']}: {at['measured_at']}, {mode['threads']} threads on {at['cores']} "
        f"cores of {at['cpu']}; load {at['load_before']} before; prompts of "
        f"{mode['prompt_tokens']} tokens; {mode['slots']} slots; "
        + ", ".join(f"{name} {found}" for name, found in at["versions"].items())
    )
