"""`reelserve jobs`: look at, download, cancel and delete what was submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deployments.cli.client import Client
from deployments.cli.clips import Variant, check_id, check_out, fetch, require_completed, took
from deployments.cli.errors import CliError
from deployments.cli.output import (
    USER_ENVIRONMENT,
    JsonOption,
    Output,
    facts,
    plain,
    reporting,
    size,
    table,
    when,
)
from deployments.cli.wait import TERMINAL, Video, describe, time_left, told, wait

app = typer.Typer(help="Look at, download, cancel and delete jobs.", no_args_is_help=True)

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The job, video_….", callback=check_id)
]
PROMPT_CHARS_MAX = 48


@app.command("list", epilog=USER_ENVIRONMENT)
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="Jobs on a page; 100 at most.")] = 20,
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    order: Annotated[
        Literal["asc", "desc"], typer.Option(help="Oldest (asc) or newest (desc) first.")
    ] = "desc",
    as_json: JsonOption = False,
) -> None:
    """List your jobs, the newest first.

    Examples:
      reelserve jobs list --limit 5
      reelserve jobs list --json | jq -r '.data[] | select(.status == "failed") | .id'
    """
    with reporting(as_json) as out, Client.as_user() as api:
        page = api.get("v1", "videos", params={"limit": limit, "after": after, "order": order}).body
        rows = [
            (
                video["id"],
                describe(video),
                video["model"],
                video["size"],
                f"{video['seconds']} s",
                when(video["created_at"]),
                plain(video["prompt"], PROMPT_CHARS_MAX),
            )
            for video in page["data"]
        ]
        heads = ("id", "state", "model", "size", "length", "submitted", "prompt")
        out.result(page, table(*heads, rows=rows) if rows else "No jobs.")
        if page["has_more"]:
            out.note(f"More: reelserve jobs list --order {order} --after {page['last_id']}")


@app.command("show", epilog=USER_ENVIRONMENT)
def show(video_id: IdArgument, as_json: JsonOption = False) -> None:
    """Show everything about one job.

    Example: reelserve jobs show video_1f0c…
    """
    with reporting(as_json) as out, Client.as_user() as api:
        video = api.get("v1", "videos", video_id).body
        error = video["error"]
        out.result(
            video,
            facts(
                [
                    ("id", video["id"]),
                    ("state", describe(video)),
                    ("progress", f"{video['progress']} %"),
                    ("left", time_left(video)),
                    ("error", f"{error['message']} ({error['code']})" if error else None),
                    ("model", video["model"]),
                    ("prompt", video["prompt"]),
                    ("not wanted", video["negative_prompt"]),
                    ("size", video["size"]),
                    ("length", f"{video['seconds']} s, {video['fps']} frames a second"),
                    ("steps", video["steps"]),
                    ("guidance", video["guidance_scale"]),
                    ("seed", video["seed"]),
                    ("class", f"{video['class']} (service tier {video['service_tier']})"),
                    ("GPU", f"{video['usage']['gpu_seconds']:g} s ({video['usage']['from']})"),
                    ("attempts", video["attempts"]),
                    ("submitted", when(video["created_at"])),
                    ("completed", when(video["completed_at"])),
                    ("file", size(video["size_bytes"]) if video["size_bytes"] else None),
                    ("took", took(video)),
                ]
            ),
        )


@app.command("cancel", epilog=USER_ENVIRONMENT)
def cancel(video_id: IdArgument, as_json: JsonOption = False) -> None:
    """Stop a job: a queued one at once, a running one at its next step.

    Cancelling again is no error; cancelling what has completed or failed is.

    Example: reelserve jobs cancel video_1f0c…
    """
    with reporting(as_json) as out, Client.as_user() as api:
        video = api.post("v1", "videos", video_id, "cancel").body
        out.result(video, f"{video['id']} {video['status']}")


@app.command("delete", epilog=USER_ENVIRONMENT)
def delete(video_id: IdArgument, as_json: JsonOption = False) -> None:
    """Remove a job and its files from the server; cancel it first if it is active.

    Example: reelserve jobs delete video_1f0c…
    """
    with reporting(as_json) as out, Client.as_user() as api:
        answer = api.delete("v1", "videos", video_id).body
        out.result(answer, f"{answer['id']} deleted")


@app.command("download", epilog=USER_ENVIRONMENT)
def download(
    video_id: IdArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder; default: ID.mp4 in this folder.", callback=check_out),
    ] = None,
    variant: Annotated[Variant, typer.Option(help="Which file.")] = Variant.VIDEO,
    wait_for_it: Annotated[
        bool, typer.Option("--wait", help="Wait until the job has ended, with a progress bar.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Download a completed clip, its thumbnail or its spritesheet, or a preview of a running one.

    The file appears whole or not at all. With --wait it resumes a `submit` that was
    interrupted; without, a job that has not ended yet is an error that says how far it is.

    Examples:
      reelserve jobs download video_1f0c… --wait --out clip.mp4
      reelserve jobs download video_1f0c… --variant thumbnail
      reelserve jobs download video_1f0c… --variant preview
    """
    if wait_for_it and variant is Variant.PREVIEW:
        raise typer.BadParameter("a job that has ended has no preview; leave --wait out")
    with reporting(as_json) as output, Client.as_user() as api:
        reply = api.get("v1", "videos", video_id)
        video = wait(api, reply, output) if wait_for_it else reply.body
        if variant is not Variant.PREVIEW:
            _require_clip(video, output)
        fetch(api, video, variant, out, output)


def _require_clip(video: Video, out: Output) -> None:
    """An error for a job that still runs, and for one that ended without a clip."""
    if video["status"] not in TERMINAL:
        left = time_left(video)
        stands = f"{describe(video)}{f', {left}' if left else ''}"
        raise told(CliError(f"Not ready: {stands}.", code="video_not_ready"), video)
    require_completed(video, out)
