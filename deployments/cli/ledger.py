"""`reelserve ledger`: whether the books are right, and all of them as a file. For the operator."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.client import Client, patiently
from deployments.cli.errors import CliError
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, Output, reporting
from serving.plan.errors import ReelserveError

if TYPE_CHECKING:
    from quota.follower import AuditCopy
    from quota.ledger import Entry
    from quota.pages import Archived

app = typer.Typer(
    help="Verify, copy, archive and export the ledger of credits (operator).", no_args_is_help=True
)

FOLLOW_S = 1.0


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


@app.command("verify", epilog=ADMIN_ENVIRONMENT)
def verify(
    archives: Annotated[
        Path | None,
        typer.Option(
            help="A folder of archives: all is made again from the first entry.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make every balance again from the ledger's entries alone, and compare. Work may go on.

    Of entries that were archived, the books are taken that the ledger kept of them; with
    --archives these are made again as well, and each file and the chain of files is checked.

    Exit code 1: something differs; each difference is named.

    Example: reelserve ledger verify --archives /backup/ledger
    """
    with reporting(as_json) as out, Client.as_admin() as api, _our_errors(archives):
        found = api.post("v1", "admin", "ledger", "verify").body
        wrong = found["differences"]
        if archives:
            wrong += _compare_chain(archives, found, out)
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
    """Print every entry that is not archived, the oldest first. Amounts are in milli-credits.

    Exit code 1: the last lines are missing.

    Example: reelserve ledger export --format csv > ledger.csv
    """
    with reporting(False) as out, Client.as_admin() as api:
        path = ("v1", "admin", "ledger", "export")
        api.download(*path, params={"format": format}, into=sys.stdout.buffer)
        sys.stdout.flush()
        if archived := _newest(api):
            out.note(
                f"The first {archived.entries} entries, up to {archived.last}, are not among them: "
                f"they are in the archives 1 to {archived.number}."
            )


@app.command("follow", epilog=ADMIN_ENVIRONMENT)
def follow(
    into: Annotated[Path, typer.Option(help="The SQLite file of the copy; made if absent.")],
    archives: Annotated[
        Path | None,
        typer.Option(
            help="A folder of archives, from which a new copy begins.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
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

    with reporting(as_json) as out, Client.as_admin() as api, _our_errors(into):
        copy = AuditCopy(into)
        try:
            if archives:
                _follow_archives(archives, copy)
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


def _follow_archives(folder: Path, copy: AuditCopy) -> None:
    from quota.archive import archives
    from quota.pages import Page, order

    at: Entry | None = None
    for archive in archives(folder):
        last = copy.last
        after = [entry for entry in archive.entries if not last or order(entry.id) > order(last.id)]
        known = len(archive.entries) - len(after)
        if after:
            copy.append(last, Page(archive.entries[known - 1] if known else at, after, None))
        at = archive.entries[-1]


@app.command("archive", epilog=ADMIN_ENVIRONMENT)
def archive(
    folder: Annotated[Path, typer.Argument(help="Where the files go; keep all of them in one.")],
    keep_days: Annotated[
        int, typer.Option(min=8, help="Entries younger than this stay in the ledger.")
    ] = 90,
    as_json: JsonOption = False,
) -> None:
    """Move old entries into files, so that the memory of Redis does not grow for ever.

    A file is on disk and checked before anything is trimmed, and the ledger trims only what it
    finds to be in it. Whatever ended it, or whoever else does it, it may be run again.

    Exit code 1: nothing more was trimmed, and it says why.

    Example: reelserve ledger archive /backup/ledger --keep-days 90
    """
    from quota.archive import make_folder

    with reporting(as_json) as out, Client.as_admin() as api, _our_errors(folder):
        make_folder(folder.absolute())
        before = newest = _newest(api)
        while trimmed := _archive_next(api, folder, keep_days, newest):
            out.note(f"Archive {trimmed.number}: up to entry {trimmed.last}.")
            newest = trimmed
        count = (newest.entries if newest else 0) - (before.entries if before else 0)
        body = {"object": "archives", "newest": asdict(newest) if newest else None}
        out.result({**body, "entries": count}, f"{count} entries were archived.")


def _archive_next(
    api: Client, folder: Path, keep_days: int, newest: Archived | None
) -> Archived | None:
    """The next archive, whose entries are trimmed now; None if there is nothing to archive."""
    from quota.archive import archive_file, put_archive, read_archive, sync_folder
    from quota.pages import Archived

    if newest:
        before = archive_file(folder, newest.number)
        if not before.exists() or read_archive(before).sha256 != newest.sha256:
            raise CliError(
                f"{before} is not the newest archive, whose SHA-256 is {newest.sha256}. "
                "Use the folder that has it.",
                code="archive_differs",
            )
    number = newest.number + 1 if newest else 1
    file = archive_file(folder, number)
    # One that is there already was not trimmed, as when its answer was lost. Whoever put it there
    # may not have come to make sure that it stays.
    if file.exists():
        sync_folder(folder)
    else:
        path = ("v1", "admin", "ledger", "archives", "next")
        params = {"keep_days": keep_days}
        try:
            put = put_archive(
                folder, number, lambda part: api.download(*path, params=params, into=part)
            )
        except FileExistsError:
            raise CliError(f"{file} was made by somebody else.", code="archive_differs") from None
        if put is None:
            return None
    kept = read_archive(file).archived
    if kept.number != number:
        raise CliError(
            f"{file} has archive {kept.number}, whose place is another: move it there.",
            code="archive_differs",
        )
    fields = {"number": kept.number, "last": kept.last, "sha256": kept.sha256}
    body = api.post("v1", "admin", "ledger", "archives", fields=fields).body
    return Archived.from_fields(body)


def _newest(api: Client) -> Archived | None:
    from quota.pages import Page

    path = ("v1", "admin", "ledger", "entries")
    return Page.from_object(api.get(*path, params={"limit": 1}).body).archived


def _compare_chain(folder: Path, found: dict[str, Any], out: Output) -> list[str]:
    """What differs between archives, all of which are right, and what the ledger kept of them."""
    from quota.archive import archives, digest
    from quota.pages import Archived

    chain = {each.header.number: (each.archived, digest(each.records)) for each in archives(folder)}
    out.note(f"{len(chain)} archives are right.")
    newest = Archived.from_fields(found["archived"] or {})
    if newest is None:
        return []
    # There may be one that is not trimmed yet.
    archived, books = chain.get(newest.number, (None, None))
    if archived != newest:
        return [f"archives: number {newest.number} is {archived} here, {newest} in the ledger"]
    if books != found["books_sha256"]:
        return ["archives: the books that the ledger kept are not those of the archives"]
    return []


@contextmanager
def _our_errors(place: Path | None) -> Iterator[None]:
    """``place``: the file or folder that is worked on."""
    try:
        yield
    except ReelserveError as error:
        raise CliError(error.message, code=error.code) from None
    except (OSError, sqlite3.Error) as error:
        raise CliError(f"{place} cannot be used: {error}", code="file_error") from None
