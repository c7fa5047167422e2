"""Archives of the ledger: files that follow each other, with entries and the books behind them.

A file has a JSON object in each line: a header, the entries in order, the records of the books as
of the last one (``quota/books.py``), and the SHA-256 of all lines before. A header names the
SHA-256 of the file before it; so nothing in the chain can be changed, left out or put in unnoticed,
as long as the newest SHA-256 is known: the cell keeps it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quota.books import Books
from quota.ledger import Entry
from quota.pages import Archived, as_object, from_object, order
from serving.plan.errors import LedgerRefused

FORMAT = 1
Record = tuple[str, str]


@dataclass(frozen=True)
class Header:
    """``previous``: the SHA-256 of the archive before, None of the first. ``entries``, from
    ``first`` to ``last``, come after so many ``before``; ``books`` records follow them."""

    number: int
    previous: str | None
    first: str
    last: str
    entries: int
    before: int
    books: int
    format: int = FORMAT


@dataclass(frozen=True)
class Archive:
    """What a file has; ``sha256`` is what it should be."""

    header: Header
    entries: Sequence[Entry]
    records: Sequence[Record]
    sha256: str

    @property
    def archived(self) -> Archived:
        header = self.header
        count = header.before + header.entries
        return Archived(header.number, header.last, self.sha256, count)


def archive_lines(
    previous: Archived | None, entries: Sequence[Entry], records: Sequence[Record]
) -> tuple[Archived, list[str]]:
    """The next archive, and the lines of its file."""
    header = Header(
        number=previous.number + 1 if previous else 1,
        previous=previous.sha256 if previous else None,
        first=entries[0].id,
        last=entries[-1].id,
        entries=len(entries),
        before=previous.entries if previous else 0,
        books=len(records),
    )
    lines = [json.dumps(asdict(header)) + "\n"]
    lines += [json.dumps(as_object(entry)) + "\n" for entry in entries]
    lines += [_record_line(record) for record in records]
    sha256 = _sha256(lines)
    lines.append(_last_line(sha256))
    return Archived(header.number, header.last, sha256, header.before + len(entries)), lines


def digest(records: Iterable[Record]) -> str:
    """A SHA-256 of the records of books, in their order."""
    return _sha256(map(_record_line, records))


def read_archive(file: Path) -> Archive:
    """:class:`LedgerRefused` (``archive_damaged``) if it is not what it was."""
    try:
        lines = file.read_bytes().decode().splitlines(keepends=True)
        header = Header(**json.loads(lines[0]))
        if header.format != FORMAT:
            raise ValueError(f"its format is {header.format}, and {FORMAT} is known here")
        sha256 = _sha256(lines[:-1])
        if lines[-1] != _last_line(sha256):
            raise ValueError("its SHA-256 is not what it says")
        behind = 1 + header.entries
        if len(lines) != behind + header.books + 1:
            raise ValueError("it has not as many lines as it says")
        entries = [from_object(json.loads(line)) for line in lines[1:behind]]
        records = [_record(json.loads(line)) for line in lines[behind:-1]]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise LedgerRefused(
            f"{file} is damaged, or no archive: {error}", code="archive_damaged"
        ) from error
    return Archive(header, entries, records, sha256)


def archive_file(folder: Path, number: int) -> Path:
    return folder / f"ledger-{number:06d}.jsonl"


def put_archive(folder: Path, number: int, write: Callable[[BinaryIO], object]) -> Path | None:
    """Write the file of an archive and put it in its place, whole and on disk for good, where no
    other may be; its place, or None if nothing was written. :class:`LedgerRefused` if it is not a
    whole archive (``archive_damaged``), or has another number (``archive_differs``)."""
    place = archive_file(folder, number)
    made, part = tempfile.mkstemp(prefix=f".{place.name}-", dir=folder)
    try:
        with os.fdopen(made, "wb") as opened:
            write(opened)
            opened.flush()
            os.fsync(opened.fileno())
            if opened.tell() == 0:
                return None
        if (made_number := read_archive(Path(part)).header.number) != number:
            raise LedgerRefused(
                f"Archive {made_number} is the next one, and not {number}: somebody else archives "
                "this ledger. Nothing was kept. Use the folder that has the newest archive.",
                code="archive_differs",
            )
        os.link(part, place)
    finally:
        os.unlink(part)
    sync_folder(folder)
    return place


def make_folder(folder: Path) -> None:
    """With those above it, each on disk for good."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """What was put into it until now is there for good."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def archives(folder: Path) -> Iterator[Archive]:
    """Those of a folder from the first on, each held against the one before: all of it is made
    again from the first entry. :class:`LedgerRefused` (``archive_damaged``) at the first that does
    not fit."""
    books, before = Books(), None
    numbers = sorted(
        int(file.name[7:-6]) for file in folder.glob("ledger-" + "[0-9]" * 6 + ".jsonl")
    )
    for wanted, number in enumerate(numbers, 1):
        if number != wanted:
            raise _damaged(f"{archive_file(folder, wanted)} is missing")
        found = read_archive(archive_file(folder, number))
        _check_chain(archive_file(folder, number), found, before)
        for entry in found.entries:
            if books.last is not None and order(entry.id) <= order(books.last):
                raise _damaged(f"{entry.id} in archive {number} does not come after {books.last}")
            books.apply(entry)
        if books.mistakes:
            raise _damaged(f"archive {number}: {books.mistakes[0]}")
        if books.close() != list(found.records):
            raise _damaged(f"the books in archive {number} are not what the entries say")
        yield found
        before = found.archived


def _check_chain(file: Path, found: Archive, before: Archived | None) -> None:
    header = found.header
    follows = (header.number, header.previous, header.before) == (
        (before.number + 1, before.sha256, before.entries) if before else (1, None, 0)
    )
    if not follows:
        raise _damaged(f"{file} does not follow the one before it")
    if not found.entries or (found.entries[0].id, found.entries[-1].id) != (
        header.first,
        header.last,
    ):
        raise _damaged(f"{file} does not have the entries it says")


def _damaged(why: str) -> LedgerRefused:
    return LedgerRefused(f"The archives are damaged: {why}.", code="archive_damaged")


def _record_line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _record(raw: Any) -> Record:
    name, value = raw
    return str(name), str(value)


def _last_line(sha256: str) -> str:
    return json.dumps({"sha256": sha256}) + "\n"


def _sha256(lines: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for line in lines:
        whole.update(line.encode())
    return whole.hexdigest()
