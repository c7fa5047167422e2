"""`reelserve ledger`: whether the books are right, and all of them as a file. For the operator."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from deployments.cli.client import Client
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, reporting

app = typer.Typer(help="Verify and export the ledger of credits (operator).", no_args_is_help=True)


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
