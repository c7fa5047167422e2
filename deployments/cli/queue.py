"""`reelserve queue`: who waits, who is next, and why. For the operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from deployments.cli.client import Client
from deployments.cli.clips import check_id
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, facts, reporting, table

app = typer.Typer(help="See who waits, who is next, and why (operator).", no_args_is_help=True)


@app.command("top", epilog=ADMIN_ENVIRONMENT)
def top(
    model: Annotated[
        str | None, typer.Argument(help="Id or alias; the server's first one if absent.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what waits for a model: by class, and the tenants of each who are served first.

    A class is owed device time while its credit is above 0: it got less than its share. Among
    tenants, the one with the smallest counter (device seconds over weight) is served first.

    Examples:
      reelserve queue top
      reelserve queue top wan2.1-t2v-1.3b --json | jq '.classes[].jobs'
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        name = model or next(iter(api.get("v1", "status").body["pools"]))
        queue = api.get("v1", "admin", "queue", name).body
        order = ", then ".join(queue["order"]) or "nobody waits"
        out.result(
            queue,
            f"{queue['model']}: {order}\n",
            table(
                *("class", "jobs", "GPU seconds", "share", "credit", "tenants ready"),
                rows=map(_class, queue["classes"]),
            ),
            *_tenants(queue["classes"]),
        )


def _class(each: Mapping[str, Any]) -> tuple[object, ...]:
    share = f"{100 * each['share']:g}%"
    credit = f"{each['credit_s']:.1f} s"
    seconds = f"{each['gpu_seconds']:.1f}"
    return (each["class"], each["jobs"], seconds, share, credit, each["tenants_ready"])


def _tenants(classes: list[Mapping[str, Any]]) -> Iterator[Any]:
    rows = [
        (
            each["user"],
            group["class"],
            f"{each['counter_s']:.1f} s",
            each["waiting"],
            each["running"],
        )
        for group in classes
        for each in group["tenants"]
    ]
    if rows:
        yield ""
        yield table("tenant", "class", "counter", "waiting", "running", rows=rows)


@app.command("explain", epilog=ADMIN_ENVIRONMENT)
def explain(
    job_id: Annotated[
        str, typer.Argument(metavar="JOB", help="The job, video_….", callback=check_id)
    ],
    as_json: JsonOption = False,
) -> None:
    """Say why a job waits: its class, its tenant's counter, its rank, and what is before it.

    Examples:
      reelserve queue explain video_1f0c…
      reelserve queue explain video_1f0c… --json | jq -r '.reasons[]'
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        job = api.get("v1", "admin", "jobs", job_id, "explain").body
        out.result(job, *_explained(job))


def _explained(job: Mapping[str, Any]) -> Iterator[Any]:
    yield from job["reasons"]
    yield ""
    waits = job["status"] == "queued"
    yield facts(
        [
            ("job", f"{job['id']} of {job['user']}"),
            ("model", job["model"]),
            ("class", job["class"]),
            *(_figures(job) if waits else ()),
        ]
    )
    if job["before"]:
        heads = ("before it", "class", "tenant", "counter", "urgency", "GPU seconds left")
        yield ""
        yield table(*heads, rows=map(_before, job["before"]))


def _figures(job: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "order", ", then ".join(job["order"])
    yield "credit", f"{job['credit_s']:.1f} s owed to its class"
    yield (
        "counter",
        f"{job['counter_s']:.1f} s; the least of the class is {job['least_counter_s']:.1f} s, and "
        f"within {job['window_s']:.1f} s of that a tenant may go first",
    )
    rank = job["rank"]
    yield "rank", f"seat {rank['seat']}, urgency {rank['urgency_s']:.1f} s: the least goes first"
    yield "tenant", f"{job['running']} jobs run; {job['own_before']} of its own go before"
    yield "waited", f"{job['waited_s']:.1f} s, {job['attempts']} attempts"
    yield "replicas", job["replicas"]


def _before(job: Mapping[str, Any]) -> tuple[object, ...]:
    seconds = (f"{job[name]:.1f} s" for name in ("counter_s", "urgency_s"))
    return (job["id"], job["class"], job["user"], *seconds, f"{job['gpu_seconds_left']:.1f}")
