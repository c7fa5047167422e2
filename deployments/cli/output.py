"""What a command prints: one JSON value, or words and tables for a person.

stdout is for results only. Progress, hints and errors go to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.cli.errors import CliError, Interrupted

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else.")
]

USER_ENVIRONMENT = (
    "Environment: REELSERVE_URL (default http://127.0.0.1:8000), "
    "REELSERVE_API_KEY (a user's key; `reelserve up` prints one)."
)
ADMIN_ENVIRONMENT = (
    "Environment: REELSERVE_URL (default http://127.0.0.1:8000), "
    "REELSERVE_ADMIN_KEY (`reelserve up` prints it the first time)."
)

PIPE_COLUMNS = 400
"""Width when nobody watches: a program that reads a table must find whole ids in it."""


class Output:
    """Where a command's results, notes and errors go."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.stderr = Console(stderr=True, highlight=False)

    def result(self, value: Any, *human: RenderableType) -> None:
        """The command's result, once: ``value`` as JSON, or each of ``human`` below the other."""
        if self.as_json:
            print(json.dumps(value, indent=2), flush=True)
            return
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = PIPE_COLUMNS
        for part in human:
            # Text is never cut or wrapped, so that a path or a key can be copied whole.
            console.print(part, soft_wrap=isinstance(part, str), markup=False)

    def note(self, text: str) -> None:
        """Something worth knowing that is not the result."""
        self.stderr.print(text, soft_wrap=True, markup=False)

    def failure(self, error: CliError) -> None:
        if self.as_json:
            value = error.envelope()
            if error.video is not None:
                value["video"] = error.video
            print(json.dumps(value, indent=2), flush=True)
        else:
            self.note(f"reelserve: {plain(error.text())}")
        if error.hint:
            self.note(error.hint)


@contextmanager
def reporting(as_json: bool) -> Iterator[Output]:
    """Run a command's body: a :class:`CliError` is printed and becomes the exit code."""
    out = Output(as_json)
    try:
        yield out
    except CliError as error:
        out.failure(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        out.failure(Interrupted())
        raise typer.Exit(Interrupted.exit_code) from None


def table(*columns: str, rows: Iterable[Iterable[object]]) -> Table:
    """A plain table. The first column is never shortened: it holds what other commands take."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(columns):
        made.add_column(name, no_wrap=index == 0, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(cell)) for cell in row))
    return made


def verdicts(targets: Mapping[str, Mapping[str, Any]]) -> Table:
    """A benchmark's targets by name, each with what was found and whether that met it."""
    return table(
        "target",
        "",
        "found",
        "",
        rows=[
            (name, each["target"], each["found"], "met" if each["met"] else "missed")
            for name, each in targets.items()
        ],
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values below each other, without those that are None or empty."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None and value != "":
            made.add_row(name, Text(plain(value)))
    return made


def plain(value: object, chars_max: int | None = None) -> str:
    """On one line, and nothing in it that a terminal obeys; a prompt may hold anything."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if chars_max is None or len(text) <= chars_max else text[: chars_max - 1] + "…"


def when(unix_s: int | None) -> str | None:
    """Local time, to the second."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def counted(count: int, what: str) -> str:
    """So many of what has a regular plural."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def size(count: int) -> str:
    """Bytes in the unit a person would choose."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
