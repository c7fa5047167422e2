"""A clip's files on this machine: their names, and how they are written and summed up."""

from __future__ import annotations

import os
import re
import secrets
from enum import StrEnum
from pathlib import Path

import typer

from deployments.cli.client import Client, patiently
from deployments.cli.errors import CliError, Interrupted
from deployments.cli.output import Output, facts, plain, size
from deployments.cli.wait import Video, told


class Variant(StrEnum):
    """Which of a clip's files."""

    VIDEO = "video"
    THUMBNAIL = "thumbnail"
    SPRITESHEET = "spritesheet"
    PREVIEW = "preview"


def check_id(video_id: str) -> str:
    """A usage error for what cannot be an id, before it becomes part of a URL or a file name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", video_id):
        raise typer.BadParameter("not a job id; `reelserve jobs list` shows them")
    return video_id


def check_out(out: Path | None) -> Path | None:
    """A usage error for a place that cannot be written, before any work is spent on it."""
    folder = Path() if out is None else out if out.is_dir() else out.parent
    if not folder.is_dir():
        raise typer.BadParameter(f"the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"the folder {folder.absolute()} cannot be written")
    if out is not None and out.exists() and not out.is_file() and not out.is_dir():
        # Renaming a finished file over it would replace the device or the pipe itself.
        raise typer.BadParameter(f"{out} is not a regular file")
    return out


def require_completed(video: Video, out: Output) -> None:
    """Report a job that ended without a clip, and exit 1."""
    if video["status"] == "completed":
        return
    error = video["error"] or {"message": f"The job is {video['status']}.", "code": "no_clip"}
    if out.as_json:
        out.result(video)
    else:
        why = plain(f"{error['message']} ({error['code']})")
        out.note(f"reelserve: {video['id']} {video['status']}: {why}")
    raise typer.Exit(1)


def fetch(api: Client, video: Video, variant: Variant, to: Path | None, out: Output) -> None:
    """Download one file of a job that has it and print the result.

    ``to`` is a file, a folder, or None for the current folder. The file appears whole or not
    at all, and replaces one that was there.
    """
    target = _target(video["id"], variant, to)
    try:
        bytes_written = patiently(lambda: _save(api, video["id"], variant, target), out.note)
    except KeyboardInterrupt:
        raise told(Interrupted("Interrupted; nothing was written."), video) from None
    except CliError as error:
        raise told(error, video) from error
    out.result(
        {**video, "file": str(target)},
        str(target),
        facts(
            [
                ("size", f"{size(bytes_written)}, {video['size']}"),
                ("length", f"{video['seconds']} s, {video['fps']} frames a second"),
                ("seed", video["seed"]),
                ("took", took(video)),
            ]
            if variant is Variant.VIDEO
            else [("size", size(bytes_written))]
        ),
    )


def took(video: Video) -> str | None:
    """Seconds of each stage, once the job is complete."""
    timings = video["timings"]
    if not timings:
        return None
    stages = [f"{name.removesuffix('_s')} {seconds:.2f} s" for name, seconds in timings.items()]
    return " · ".join(stages)


def _target(video_id: str, variant: Variant, to: Path | None) -> Path:
    name = f"{video_id}.mp4" if variant is Variant.VIDEO else f"{video_id}-{variant}.jpg"
    if to is None or to.is_dir():
        to = (to or Path()) / Path(name).name
    return to.absolute()


def _save(api: Client, video_id: str, variant: Variant, target: Path) -> int:
    """Bytes written to ``target``, which is replaced in one step when all of them are there."""
    part = target.with_name(f".reelserve-{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            api.download(
                "v1", "videos", video_id, "content", params={"variant": variant}, into=file
            )
            count = file.tell()
        part.replace(target)
    except OSError as error:
        raise CliError(
            f"cannot write {target}: {error.strerror or error}", code="cannot_write"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return count
