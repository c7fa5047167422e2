"""`reelserve loadtest`: users on a running stack, and spikes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from deployments.cli.bench import own_stack
from deployments.cli.client import Client
from deployments.cli.errors import CliError
from deployments.cli.loadtest_spike import SPIKE_ENVIRONMENT, spike
from deployments.cli.output import USER_ENVIRONMENT, JsonOption, Output, reporting, table

app = typer.Typer(help="Put users on a running stack.", no_args_is_help=True)

app.command("spike", epilog=SPIKE_ENVIRONMENT)(spike)

COLUMNS = ("requests", "failures", "p50_ms", "p95_ms", "p99_ms", "per_s")
PROGRESS_S = 5


@app.command("steady", epilog=USER_ENVIRONMENT)
def steady(
    users: Annotated[int, typer.Option(min=1, max=1000, help="How many at once.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="For how long.")] = 60,
    start: Annotated[
        bool, typer.Option("--start", help="Start a stack of its own, and stop it afterwards.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let users make small clips for a while, and print what they saw.

    Three of four submit a clip, poll as the OpenAI SDK does and download it, again and again;
    the others list clips and look at models. All speak with one key, best of a user whose tier
    has no limits (`reelserve users set NAME --tier unlimited`): a refusal (429) counts apart. Exit
    code 1: something failed, or an accepted job made no clip. The clips stay.

    Examples:
      reelserve loadtest steady
      reelserve loadtest steady --users 20 --seconds 300 --json | jq .jobs
      reelserve loadtest steady --start
    """
    with reporting(as_json) as out, ExitStack() as exit_stack:
        if find_spec("locust") is None:
            raise CliError(
                "locust is not installed: pip install 'reelserve[loadtest]'", code="missing_locust"
            )
        if start:
            stack = exit_stack.enter_context(own_stack(out))
            os.environ.update(REELSERVE_URL=stack.url, REELSERVE_API_KEY=stack.api_key)
        with Client.as_user() as api:
            api.get("v1", "models")  # an error here says more than a thousand there
            url = api.url
        out.note(f"{users} users for {seconds:g} s on {url}")
        result = _run(users, seconds, {**os.environ, "REELSERVE_URL": url}, out)
        value = {"url": url, "users": users, "seconds": seconds, **result}
        out.result(value, *_report(value))
        if not value["ok"]:
            raise typer.Exit(1)


def _run(users: int, seconds: float, env: Mapping[str, str], out: Output) -> dict[str, Any]:
    from loadtest.errors import LoadTestError
    from loadtest.steady import run

    heard = 0

    def progress(so_far: Mapping[str, Any]) -> None:
        nonlocal heard
        heard += 1
        if heard % PROGRESS_S == 0:
            out.note(f"… {heard} s: {_summary(so_far)}")

    try:
        return run(users, seconds, env, progress)
    except LoadTestError as error:
        raise CliError(str(error), code="loadtest_failed") from None


def _summary(value: Mapping[str, Any]) -> str:
    jobs = value["jobs"]
    return (
        f"{value['requests']} requests, {value['failures']} failures, {value['refused']} refused; "
        f"{jobs['completed']} of {jobs['submitted']} jobs completed, {jobs['failed']} failed"
    )


def _report(value: Mapping[str, Any]) -> Iterator[Any]:
    yield table(
        "request",
        *COLUMNS,
        rows=[
            (f"{each['method']} {each['name']}", *(each[name] for name in COLUMNS))
            for each in value["entries"]
        ],
    )
    yield f"\n{_summary(value)}, {value['jobs']['unfinished']} unfinished"
    for error in value["errors"]:
        yield f"{error['count']} times: {error['name']}: {error['error']}"
