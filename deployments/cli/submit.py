"""`reelserve submit`: one clip, from a prompt to a file."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.cli.client import Client, Reply, patiently
from deployments.cli.clips import Variant, check_out, fetch, require_completed
from deployments.cli.errors import CliError, ConnectionLost, Interrupted, Unreachable
from deployments.cli.output import JsonOption, Output, reporting
from deployments.cli.wait import wait
from serving.plan.classes import ServiceTier

KEY = re.compile(r"[!-~]{1,255}")
"""What the API takes, and a header can carry."""


def _check_key(key: str | None) -> str | None:
    if key is not None and not KEY.fullmatch(key):
        raise typer.BadParameter("1 to 255 letters, digits and signs of ASCII, without spaces")
    return key


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
    upscale: Annotated[
        int | None, typer.Option(help="2 for twice the width and height of --size.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the clip should not show.")
    ] = None,
    service_tier: Annotated[
        ServiceTier | None,
        typer.Option(help="Who goes first: priority, default or flex; auto is what you have."),
    ] = None,
    max_credits: Annotated[
        float | None,
        typer.Option(min=0, help="Beyond the allowance, credits may pay for it: so many at most."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="Submitting again under the same key gives the same job, for a day.",
            callback=_check_key,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder; default: ID.mp4 in this folder.", callback=check_out),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's id and return at once.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Print what it would cost and wait for; make nothing."),
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
      reelserve submit "a slow dawn" --seconds 4 --estimate
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
        "upscale": upscale,
        "negative_prompt": negative_prompt,
        "service_tier": service_tier,
        "max_credits": max_credits,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    with reporting(as_json) as output, Client.as_user() as api:
        if estimate:
            outlook = api.post("v1", "estimates", fields=given).body
            output.result(outlook, _outlook(outlook))
            return
        reply = _create(api, given, idempotency_key or secrets.token_hex(16), output)
        video = reply.body
        if no_wait:
            output.result(video, video["id"])
            return
        output.note(
            f"{video['id']}: {video['model']}, {video['size']}, {video['seconds']} s, "
            f"{video['steps']} steps, seed {video['seed']}"
        )
        _finish(api, reply, out, output)


def _outlook(outlook: dict[str, Any]) -> str:
    cost = f"{outlook['price']['credits']:g} credits, {outlook['gpu_seconds']:g} GPU-seconds"
    if upscale_s := outlook.get("upscale_seconds"):
        cost += f" and {upscale_s:g} s of an upscaler"
    if refusal := outlook["refusal"]:
        return f"{cost}; it would be refused: {refusal['message']}"
    paid = {
        "allowance": "the allowance",
        "relaxed": "nothing: it runs when there is room",
        "credits": "credits",
    }
    return (
        f"{cost}; class {outlook['class']}, paid from {paid[outlook['from']]}; "
        f"{outlook['queue_position']} jobs before it, done in about {outlook['eta_seconds']:g} s"
    )


def _create(api: Client, fields: dict[str, Any], key: str, out: Output) -> Reply:
    """Submit, and again when the answer was lost or there was no room: the key makes it one job."""
    reached = False

    def send() -> Reply:
        nonlocal reached
        try:
            return api.post("v1", "videos", fields=fields, idempotency_key=key)
        except Unreachable as error:
            error.transient = reached  # else there is nobody to wait for
            raise
        except CliError:
            reached = True
            raise

    try:
        return patiently(send, out.note)
    except (ConnectionLost, Unreachable, KeyboardInterrupt) as error:
        failure: CliError = error if isinstance(error, CliError) else Interrupted()
        if reached or isinstance(error, KeyboardInterrupt):
            failure.hint = (
                "  The clip may have been accepted all the same. To get that one and no other, "
                f"submit the same again with\n  --idempotency-key {key}"
            )
        raise failure from None


def _finish(api: Client, reply: Reply, to: Path | None, output: Output) -> None:
    video = wait(api, reply, output)
    require_completed(video, output)
    fetch(api, video, Variant.VIDEO, to, output)
