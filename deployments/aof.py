"""Redis's append-only log as it lies on disk: which files it is, and how far it is whole.

Redis writes a record for each command, and around those of one script MULTI and EXEC. Version 7
keeps it in a folder, in parts that a manifest lists in order: a base, and what came after it. The
base, or the beginning of version 6's only file, may be a snapshot in Redis's RDB format.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.plan.errors import ConfigError

ONE_FILE = "appendonly.aof"
FOLDER = "appendonlydir"
MANIFEST = "appendonly.aof.manifest"

ARGUMENTS = re.compile(rb"\*([1-9]\d{0,9})\r\n")
ARGUMENT = re.compile(rb"\$(\d{1,10})\r\n")
ANNOTATION = re.compile(rb"#[^\n]*\n")
ANY_RECORD = re.compile(rb"\*[1-9]\d{0,9}\r\n\$\d")
INSTEAD = "Nothing can be cut: put a copy of the whole folder in its place"
FIRST_RECORD = b"*2\r\n$6\r\nSELECT\r\n"
"""What Redis writes first behind a snapshot, whose end is not marked otherwise."""
SNAPSHOT_END, CHECKSUM_BYTES = 0xFF, 8

Bytes = bytes | mmap.mmap


@dataclass(frozen=True)
class Scan:
    """How far a file of the log is whole.

    ``whole_bytes`` of ``size_bytes``: up to the end of the last record that is there with all of
    its transaction. Behind it, ``unfinished`` whole records of a transaction without an end; and
    ``following`` whole records behind the first that is not: there are none if writing just
    stopped, so then it is not only the end that is damaged.
    """

    file: Path
    size_bytes: int
    whole_bytes: int
    unfinished: int
    following: int

    @property
    def whole(self) -> bool:
        return self.whole_bytes == self.size_bytes


def log_files(folder: Path) -> Sequence[Path]:
    """The files of the log in Redis's folder, in their order; none if there is no log.

    :class:`ConfigError` if the manifest cannot be read, is empty or names a file that is not there.
    """
    parts, manifest = folder / FOLDER, folder / FOLDER / MANIFEST
    if not manifest.exists():
        return [folder / ONE_FILE] if (folder / ONE_FILE).exists() else []
    files = []
    for line in manifest.read_text(errors="replace").splitlines():
        words = line.split()
        fields = dict(zip(words[::2], words[1::2], strict=False))
        if fields.get("type") not in ("b", "h", "i") or "file" not in fields:
            raise ConfigError(f"{manifest}: this line cannot be read: {line!r}. {INSTEAD}")
        if fields["type"] != "h":
            files.append(parts / fields["file"])
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{manifest} names {file.name}, which is not there. {INSTEAD}")
    if not files:
        raise ConfigError(f"{manifest} is empty. {INSTEAD}")
    return files


def scan(file: Path) -> Scan:
    """Read one file of the log; :class:`ConfigError` if the snapshot it begins with has no end."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            return Scan(file, 0, 0, 0, 0)
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as log:
            return _scan(file, log)


def record_ends(log: Bytes) -> Iterator[tuple[int, bytes]]:
    """Where each record of a whole log without a snapshot ends, and its command."""
    at = 0
    while record := _record(log, at):
        yield record
        at = record[0]


def _scan(file: Path, log: mmap.mmap) -> Scan:
    whole = at = _snapshot_end(file, log)
    within, unfinished = False, 0
    while record := _record(log, at):
        end, command = record
        if within and command == b"MULTI":
            break
        at, unfinished = end, unfinished + 1
        within = command == b"MULTI" or (within and command != b"EXEC")
        if not within:
            whole, unfinished = at, 0
    return Scan(file, len(log), whole, unfinished, sum(1 for _ in _records_from(log, at)))


def _record(log: Bytes, at: int) -> tuple[int, bytes] | None:
    """Where the record that begins here ends, and its command; None if it is not whole."""
    while note := ANNOTATION.match(log, at):
        at = note.end()
    head = ARGUMENTS.match(log, at)
    if head is None:
        return None
    at, command = head.end(), b""
    for number in range(int(head[1])):
        size = ARGUMENT.match(log, at)
        if size is None:
            return None
        start, end = size.end(), size.end() + int(size[1])
        if log[end : end + 2] != b"\r\n":
            return None
        if number == 0:
            command = log[start:end].upper()
        at = end + 2
    return at, command


def _records_from(log: mmap.mmap, at: int) -> Iterator[int]:
    """Where whole records begin, wherever they do."""
    while found := ANY_RECORD.search(log, at):
        record = _record(log, found.start())
        if record:
            yield found.start()
        at = record[0] if record else found.start() + 1


def _snapshot_end(file: Path, log: mmap.mmap) -> int:
    """Where the snapshot ends that the log begins with; 0 if it begins with none."""
    if log[:5] != b"REDIS":
        return 0
    after, size = SNAPSHOT_END.to_bytes(), len(log)
    at = log.find(FIRST_RECORD)
    while at != -1:
        if log[at - CHECKSUM_BYTES - 1 : at - CHECKSUM_BYTES] == after:
            return at
        at = log.find(FIRST_RECORD, at + 1)
    for torn in range(len(FIRST_RECORD)):
        at = size - torn
        if log[at:] == FIRST_RECORD[:torn] and log[at - CHECKSUM_BYTES - 1] == SNAPSHOT_END:
            return at
    raise ConfigError(
        f"{file}: the snapshot that the log begins with is damaged. Nothing can be cut from it: "
        "put a copy in its place"
    )
