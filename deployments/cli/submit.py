"""`reelserve submit`: one clip, from a prompt to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.cli.client import Client, Reply
from deployments.cli.clips import Variant, check_out, fetch, require_completed
from deployments.cli.errors import CliError, ConnectionLost, Interrupted
from deployments.cli.output import JsonOption, Output, reporting
from deployments.cli.wait import wait


def submit(
    prompt: Annotated[str, typer.Argument(help="What the clip shows.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Model id or alias; the server's first one if absent.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, such as 1280x720.")] = None,
    seconds: Annotated[int | None, typer.Option(help="Length of the clip.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same request and seed give the same bytes.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 turns guidance off.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the clip should not show.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder; default: ID.mp4 in this folder.", callback=check_out),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's id and return at once.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate a clip: submit it, watch it, download it.

    What is left out is the model's default; `reelserve models list` shows what each allows.
    Ctrl-C stops the watching, not the job. Exit code 1: refused, failed or cancelled.

    Examples:
      reelserve submit "a red ball rolls to the right" --out ball.mp4
      reelserve submit "rain on a window" --size 1280x720 --seconds 4 --seed 7 --json
      id=$(reelserve submit "a slow dawn" --no-wait); reelserve jobs download $id --wait
    """
    if no_wait and out is not None:
        raise typer.BadParameter("--no-wait downloads nothing, so there is no place for --out")
    fields = {
        "prompt": prompt,
        "model": model,
        "size": size,
        "seconds": seconds,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "fps": fps,
        "negative_prompt": negative_prompt,
    }
    with reporting(as_json) as output, Client.as_user() as api:
        reply = _create(api, {name: value for name, value in fields.items() if value is not None})
        video = reply.body
        if no_wait:
            output.result(video, video["id"])
            return
        output.note(
            f"{video['id']}: {video['model']}, {video['size']}, {video['seconds']} s, "
            f"{video['steps']} steps, seed {video['seed']}"
        )
        _finish(api, reply, out, output)


def _create(api: Client, fields: dict[str, Any]) -> Reply:
    """Submit, once: the answer may be lost after the job was taken."""
    try:
        return api.post("v1", "videos", fields=fields)
    except (ConnectionLost, KeyboardInterrupt) as error:
        failure: CliError = error if isinstance(error, ConnectionLost) else Interrupted()
        failure.hint = "  The clip may have been accepted all the same: reelserve jobs list"
        raise failure from None


def _finish(api: Client, reply: Reply, to: Path | None, output: Output) -> None:
    video = wait(api, reply, output)
    require_completed(video, output)
    fetch(api, video, Variant.VIDEO, to, output)
