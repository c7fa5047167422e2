"""`reelserve loadtest spike`: many jobs at once, and how the pool follows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from deployments.cli.autoscale_watch import pool_charts
from deployments.cli.charts import AXIS_COLUMNS, SVG_COLUMNS, write_svg
from deployments.cli.client import Client
from deployments.cli.errors import CliError
from deployments.cli.output import USER_ENVIRONMENT, JsonOption, counted, reporting, table

SPIKE_ENVIRONMENT = (
    f"{USER_ENVIRONMENT} With REELSERVE_ADMIN_KEY, it says what the autoscaler wanted too."
)
JOBS_MAX, SECONDS_MAX = 2000, 7200
CHART_COLUMNS = SVG_COLUMNS - AXIS_COLUMNS - 2


def spike(
    model: Annotated[
        str | None, typer.Option(help="Id or alias; the server's first one if absent.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=JOBS_MAX, help="How many.")] = 40,
    over: Annotated[
        float, typer.Option(min=0, max=SECONDS_MAX, help="Within how many seconds they come.")
    ] = 10,
    quiet: Annotated[
        float, typer.Option(min=0, max=SECONDS_MAX, help="Seconds of quiet before them.")
    ] = 5,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Half as many, as many, and twice as many; the model's default."),
    ] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Wait until the replicas are gone again, too.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, max=SECONDS_MAX, help="Seconds for all of it.")
    ] = 900,
    svg: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a picture of it to this file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Submit many small clips at once, and see how replicas follow and how long the jobs wait.

    An open loop: the jobs come at their times, whatever becomes of the earlier ones. They are of
    mixed size, length and steps, all of one user, best one whose tier has no limits (`reelserve
    users set NAME --tier unlimited`): a refusal (429) counts apart. Exit code 1: an accepted job
    made no clip, a request failed, or it was not over in time. The clips stay.

    Examples:
      reelserve loadtest spike
      reelserve loadtest spike --jobs 60 --over 5 --until-idle --svg spike.svg
      reelserve loadtest spike --json | jq .replicas
    """
    from loadtest.errors import LoadTestError
    from loadtest.spike import Plan, run

    with reporting(as_json) as out:
        with Client.as_user() as api:
            api.get("v1", "models")  # an error here says more than a thousand there
            url = api.url
        key, admin_key = (_variable("REELSERVE_API_KEY"), _variable("REELSERVE_ADMIN_KEY"))
        plan = Plan(
            url, key, admin_key or None, model, jobs, over, quiet, steps, until_idle, timeout
        )
        try:
            value = run(plan, out.note)
        except LoadTestError as error:
            raise CliError(str(error), code="loadtest_failed") from None
        if svg is not None:
            write_svg(svg, "reelserve loadtest spike", picture(value))
            out.note(f"The picture is in {svg}.")
        out.result({"url": url, **value}, *_report(value))
        if not value["ok"]:
            raise typer.Exit(1)


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def picture(value: Mapping[str, Any]) -> RenderableType:
    """Replicas and backlog from the quiet to the end."""
    looks = value["timeline"]
    begins_s, ends_s = looks[0]["t_s"], looks[-1]["t_s"]
    points = [
        (ends_s - look["t_s"], {**look, "jobs": look["queued"] + look["in_progress"]})
        for look in looks
    ]
    axis = (f"{begins_s:.0f} s", f"{ends_s:.0f} s")
    charts = pool_charts(points, max(1.0, ends_s - begins_s), CHART_COLUMNS, axis)
    heading = Text(f"{value['model']}: {_jobs(value)}", style="bold")
    return Group(heading, Text(f"replicas: {_replicas(value)}"), *charts)


def _report(value: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield picture(value)
    yield ""
    rows = [
        (name, *(f"{value[key][each]:.1f} s" for each in ("p50", "p95", "max")))
        for name, key in (("wait in the queue", "queue_wait_s"), ("submission to clip", "total_s"))
        if value[key]
    ]
    if rows:
        yield table("", "p50", "p95", "longest", rows=rows)
    if objectives := _objectives(value):
        yield f"objectives attained: {objectives}"
    if value["timed_out"]:
        late = "Some jobs had not ended" if value["jobs"]["unfinished"] else "Replicas were left"
        yield f"{late} when the time was over."
    for error in value["errors"]:
        yield f"{counted(error['count'], 'time')}: {error['error']}"


def _jobs(value: Mapping[str, Any]) -> str:
    names = ("completed", "failed", "refused", "unfinished")
    return ", ".join(f"{value['jobs'][name]} {name}" for name in names)


def _replicas(value: Mapping[str, Any]) -> str:
    found = value["replicas"]
    if found["first_added_s"] is None:
        return f"{found['before']} all the time"
    first, last = f"{found['first_added_s']:.0f} s", f"{found['last_added_s']:.0f} s"
    text = (
        f"{found['before']} before, the first more after {first}, all {found['peak']} after {last}"
    )
    if found["back_at_floor_s"] is None:
        return text
    return f"{text}, {found['floor']} again after {found['back_at_floor_s']:.0f} s"


def _objectives(value: Mapping[str, Any]) -> str | None:
    """Of all jobs of the model meanwhile, as the server counts."""
    shares = [
        f"{name} {100 * each['share']:.0f}% of {each['attained'] + each['missed']}"
        for name, each in (value["objectives"] or {}).items()
        if each["share"] is not None
    ]
    return ", ".join(shares) or None
