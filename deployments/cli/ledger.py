"""`reelserve ledger`: whether the books are right, and all of them as a file. For the operator."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.client import Client, patiently
from deployments.cli.errors import CliError
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, Output, reporting
from serving.plan.errors import ReelserveError

if TYPE_CHECKING:
    from quota.follower import AuditCopy

app = typer.Typer(
    help="Verify, copy and export the ledger of credits (operator).", no_args_is_help=True
)

FOLLOW_S = 1.0


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


@app.command("verify", epilog=ADMIN_ENVIRONMENT)
def verify(as_json: JsonOption = False) -> None:
    """Make every balance again from the ledger's entries alone, and compare. Work may go on.

    Exit code 1: something differs; each difference is named.

    Example: reelserve ledger verify
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        found = api.post("v1", "admin", "ledger", "verify").body
        wrong = found["differences"]
        verdict = f"{len(wrong)} differences." if wrong else "Every balance is what they say."
        out.result(found, *wrong, f"{found['entries']} entries. {verdict}")
    if wrong:
        raise typer.Exit(1)


@app.command("export", epilog=ADMIN_ENVIRONMENT)
def export(
    format: Annotated[
        Format, typer.Option(help="One object in a line, or a row for each posting.")
    ] = Format.JSONL,
) -> None:
    """Print every entry, the oldest first. Amounts are in milli-credits.

    Exit code 1: the last lines are missing.

    Example: reelserve ledger export --format csv > ledger.csv
    """
    with reporting(False), Client.as_admin() as api:
        path = ("v1", "admin", "ledger", "export")
        api.download(*path, params={"format": format}, into=sys.stdout.buffer)
        sys.stdout.flush()


@app.command("follow", epilog=ADMIN_ENVIRONMENT)
def follow(
    into: Annotated[Path, typer.Option(help="The SQLite file of the copy; made if absent.")],
    once: Annotated[
        bool, typer.Option("--once", help="End when the copy has every entry.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Keep a copy of every entry in a SQLite file, which refuses what no ledger may have.

    It goes on from where it was, whatever ended it. `reelserve up` keeps one by itself, as
    ledger.sqlite in its data directory.

    Exit code 1: the copy is not of this ledger, or an entry was refused; it says which.

    Example: reelserve ledger follow --into audit.sqlite --once
    """
    from quota.follower import AuditCopy

    with reporting(as_json) as out, Client.as_admin() as api, _our_errors():
        copy = AuditCopy(into)
        try:
            while True:
                if _follow_page(api, copy, out):
                    continue
                if once:
                    break
                time.sleep(FOLLOW_S)
            done = {"object": "audit_copy", "file": str(into), "entries": copy.count()}
            out.result(done, f"{done['entries']} entries.")
        finally:
            copy.close()


def _follow_page(api: Client, copy: AuditCopy, out: Output) -> int:
    """How many entries were copied."""
    from quota.pages import Page

    path, last = ("v1", "admin", "ledger", "entries"), copy.last
    params: dict[str, str | int | None] = {"after": last.id if last else None}
    return copy.append(
        last, Page.from_object(patiently(lambda: api.get(*path, params=params), out.note).body)
    )


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except ReelserveError as error:
        raise CliError(error.message, code=error.code) from None
