"""`reelserve bench speech`: how soon speech is heard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, reporting, table
from serving.plan.errors import ReelserveError


def speech(
    requests: Annotated[int, typer.Option(min=1, max=1000, help="How many, one by one.")] = 50,
    response_format: Annotated[str, typer.Option(help="mp3, opus, aac, flac, wav or pcm.")] = "mp3",
    videos: Annotated[
        bool, typer.Option(help="Again while videos of the demo model take every place.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Measure the time to the first byte of a sentence of thirty words.

    One request after another, on a stack of its own; GET /healthz on the same connection is the
    baseline. Then again while as many videos as there are slots run, or wait for a place. Exit code
    1 if a request fails; whether the targets were met is in the result.

    Examples:
      reelserve bench speech
      reelserve bench speech --no-videos --json | jq .p50_ms
    """
    from deployments.cli.bench import described, own_stack, told, where
    from loadtest.errors import LoadTestError
    from loadtest.speech import measure, summarise
    from loadtest.summary import machine

    with reporting(as_json) as out:
        with own_stack(out) as stack:
            at = machine(stack.settings.data_dir)
            models = stack.settings.catalog().models.values()
            slots = sum(each.placement.slots * each.placement.replicas for each in models)
            try:
                idle, beside = asyncio.run(
                    measure(
                        stack.url,
                        stack.api_key,
                        requests=requests,
                        audio_format=response_format,
                        videos=slots if videos else 0,
                        tell=told(out),
                    )
                )
            except (LoadTestError, ReelserveError) as error:
                raise CliError(f"the benchmark failed: {error}", code="benchmark_failed") from error
        value = {
            "command": f"reelserve bench speech --requests {requests} "
            f"--response-format {response_format}{'' if videos else ' --no-videos'}",
            **summarise(idle, beside),
            "stack": described(stack),
            "machine": at,
        }
        out.result(value, *_report(value), where(value))


def _report(value: Mapping[str, Any]) -> Iterator[Any]:
    figures = ("p50_ms", "p95_ms", "p99_ms", "max_ms")
    labels = {
        "first_byte": "first byte",
        "whole": "last byte",
        "beside_videos": "first byte beside videos",
    }
    rows, base = value["rows"], value["baseline"]
    yield table(
        "",
        *figures,
        rows=[
            *((labels[name], *(row[each] for each in figures)) for name, row in rows.items()),
            (base["request"], *(base[each] for each in figures)),
            ("ratio", *(f"{value['ratio'].get(each, '-')} x" for each in figures)),
        ],
    )
    for name, each in value["targets"].items():
        yield (
            f"target {name.replace('_', ' ')} {each['target']:g}: {each['found']:g}, "
            f"{'met' if each['met'] else 'missed'}"
        )
