"""`reelserve autoscale`: how many replicas each model should have, and why. For the operator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from deployments.cli.autoscale_watch import Watch
from deployments.cli.autoscale_words import explained
from deployments.cli.charts import AXIS_COLUMNS, SVG_COLUMNS, write_svg
from deployments.cli.client import Client
from deployments.cli.errors import CliError
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, Output, reporting

app = typer.Typer(help="See how many replicas there are, and why (operator).", no_args_is_help=True)

REFRESH_S = 1.0
WIDTH_MIN, WIDTH_MAX = 20, 100
"""Of a chart, in columns."""

PoolArgument = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="Id or alias; all of them if absent.")
]


@app.command("explain", epilog=ADMIN_ENVIRONMENT)
def explain(model: PoolArgument = None, as_json: JsonOption = False) -> None:
    """Say why a model has as many replicas as it has: the autoscaler's last decision.

    What it saw of each class, the formula with the figures put in, which bound applied, and in how
    long the next replica is tried where starts failed.

    Examples:
      reelserve autoscale explain
      reelserve autoscale explain demo-wan --json | jq '.pools[].decision.bound'
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        answer = api.get("v1", "admin", "autoscale", params={"model": model}).body
        parts = [part for pool in answer["pools"] for part in (*explained(pool), "")]
        out.result(answer, *parts[:-1])


@app.command("watch", epilog=ADMIN_ENVIRONMENT)
def watch(
    model: PoolArgument = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="End after so long; until Ctrl-C if absent.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the last picture to this file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw replicas and backlog of the last minutes, again each second. Ctrl-C ends it.

    Where stdout is no terminal, a line is printed for each change instead. With --json the history
    is printed once, at the end.

    Examples:
      reelserve autoscale watch
      reelserve autoscale watch demo-wan --seconds 60 --svg spike.svg
      reelserve autoscale watch --seconds 60 --json | jq '.data[].pools'
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        seen = Watch(api, model, out.note)
        seen.look()
        if not seen.scaled():
            which = f"of {seen.pools[0]['model']}" if model else "of every model"
            raise CliError(
                f"autoscaling is off: the number of replicas {which} is fixed (no `scaling` in its "
                "catalog entry, or REELSERVE_AUTOSCALE_ENABLED is false)",
                code="autoscaling_off",
            )
        with suppress(KeyboardInterrupt):  # the usual end
            _follow(seen, seconds, out)
        if svg is not None:
            write_svg(
                svg, "reelserve autoscale watch", seen.picture(SVG_COLUMNS - AXIS_COLUMNS - 2)
            )
            out.note(f"The picture is in {svg}.")
        if as_json:
            out.result({"object": "list", "data": seen.history()})


def _follow(seen: Watch, seconds: float | None, out: Output) -> None:
    console = Console(highlight=False)
    if out.as_json:
        for _ in _looks(seen, seconds):
            pass
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for _ in _looks(seen, seconds):
                width = min(WIDTH_MAX, max(WIDTH_MIN, console.width - AXIS_COLUMNS - 2))
                live.update(seen.picture(width), refresh=True)
    else:
        for _ in _looks(seen, seconds):
            for change in seen.changes():
                print(change, flush=True)


def _looks(seen: Watch, seconds: float | None) -> Iterator[None]:
    """After the first look and then after each, REFRESH_S apart."""
    ends = None if seconds is None else time.monotonic() + seconds
    while True:
        yield
        left_s = REFRESH_S if ends is None else min(REFRESH_S, ends - time.monotonic())
        if left_s <= 0:
            return
        time.sleep(left_s)
        seen.look()
