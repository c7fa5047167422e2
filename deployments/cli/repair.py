"""`reelserve repair`: makes a data directory start again whose log is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.aof import Scan
from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, Output, reporting
from serving.plan.errors import ReelserveError

if TYPE_CHECKING:
    from deployments.repair import Repair


def repair(
    data_dir: Annotated[
        Path | None, typer.Option(help="As for `up`; it must not be in use.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Cut a torn end without asking.")] = False,
    cut_at_damage: Annotated[
        bool,
        typer.Option(
            "--cut-at-damage",
            help="Cut there although whole records follow, which are lost.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Cut the torn end off the queue's log, as after a power cut, and check what is there then.

    It is for the Redis that `up` starts itself, when that refuses its log. A copy of all Redis had
    is kept in the data directory. What is cut was never acknowledged, unless the disk lost what it
    had said it kept. In the end the ledger is verified, and held against the jobs and the audit
    copy.

    Exit code 1: nothing was cut, or something is wrong with what is there; each thing is named.

    Example: reelserve repair --data-dir ./data
    """
    from deployments.repair import Repair
    from deployments.settings import StackSettings

    with reporting(as_json) as out:
        try:
            folder = StackSettings.load(data_dir=data_dir).data_dir
            with Repair(folder) as work:
                done = _repair(work, out, yes, cut_at_damage)
        except ReelserveError as error:
            raise CliError(error.message, code=error.code) from None
        out.result(done, *done["problems"], *done["lost"], _summary(done))
    if done["problems"] or done["lost"]:
        raise typer.Exit(1)


def _repair(work: Repair, out: Output, yes: bool, cut_at_damage: bool) -> dict[str, Any]:
    end, copy = work.examine(), None
    if end is not None:
        _agree(end, out, yes, cut_at_damage)
        copy = work.keep_copy()
        out.note(f"A copy is in {copy}.")
        work.cut(end)
    found = work.check()
    if found.lost:
        out.note(f"What the log lost is in the audit copy, now {work.set_aside()}.")
    return {
        "object": "repair",
        "copy": None if copy is None else str(copy),
        "cut_bytes": 0 if end is None else end.size_bytes - end.whole_bytes,
        "cut_records": 0 if end is None else end.unfinished + end.following,
        "entries": found.entries,
        "problems": list(found.problems),
        "lost": [f"lost: {each}" for each in found.lost],
    }


def _agree(end: Scan, out: Output, yes: bool, cut_at_damage: bool) -> None:
    """:class:`CliError` unless it may be cut."""
    cut = end.size_bytes - end.whole_bytes
    out.note(
        f"{end.file} is whole up to byte {end.whole_bytes} of {end.size_bytes}: "
        f"{cut} bytes would be cut."
    )
    if end.unfinished:
        out.note(f"In them, {end.unfinished} records begin a change whose end is missing.")
    if end.following:
        out.note(
            f"{end.following} whole records follow the damage: it is not only a torn end, and what "
            "was acknowledged would be lost with them."
        )
        if not cut_at_damage:
            raise CliError(
                "nothing was changed. If you have no better copy of the log, cut it there with "
                "--cut-at-damage.",
                code="damaged_within",
            )
    if not yes and (out.as_json or not typer.confirm("Keep a copy, and cut them?", err=True)):
        raise CliError("nothing was changed; --yes cuts without asking.", code="not_agreed")


def _summary(done: dict[str, Any]) -> str:
    cut = f"{done['cut_bytes']} bytes were cut." if done["copy"] else "Nothing is to be cut."
    wrong = len(done["problems"])
    verdict = f"{wrong} problems." if wrong else "Books and jobs agree."
    if done["lost"]:
        verdict += f" {len(done['lost'])} entries were lost."
    return f"{cut} {done['entries']} entries in the ledger. {verdict}"
