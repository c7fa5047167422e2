"""An audit copy of the ledger: its entries, in order, in a SQLite file that a follower keeps.

The file's constraints (``sql/ledger.sql``) allow only what a ledger may hold, so the copy is also a
second opinion: it refuses what is wrong, whoever wrote it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from quota.ledger import Entry
from quota.pages import PAGE, Page, order
from quota.sqlite_ledger import SqliteLedger
from serving.plan.errors import ConfigError, LedgerRefused


class AuditCopy(SqliteLedger):
    """One file, for one thread; nothing but :meth:`append` writes to it, each page as a whole.

    Others may follow into the same file: each entry is copied once. :class:`ConfigError` if the
    file is something else.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            file.touch(mode=0o600)
            super().__init__(file, lambda: int(1000 * time.time()))
            self._db.executescript((files("quota") / "sql" / "copy.sql").read_text())
            (strange,) = self._db.execute(
                "SELECT count(*) FROM entries WHERE id NOT IN (SELECT entry FROM copied)"
            ).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{file} cannot be a copy of the ledger: {error}") from error
        if strange:
            raise ConfigError(f"{file} is a ledger itself, and no copy of one")

    @property
    def last(self) -> Entry | None:
        """The last entry that was copied."""
        row = self._db.execute("SELECT * FROM entries ORDER BY id DESC LIMIT 1").fetchone()
        return self._entry(row) if row else None

    def count(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM copied").fetchone()
        return int(count)

    def append(self, after: Entry | None, page: Page) -> int:
        """Append what follows ``after``, which was the last; how many entries that were; 0, if
        another follower was faster.

        :class:`LedgerRefused`: ``source_differs`` if that one is not in the page's ledger, or is
        another there; ``entries_archived`` if entries are missing in between; ``entry_refused``,
        with those before it copied, if an entry is none that a ledger may have.
        """
        self._compare(after, page)
        with self._writing():
            if self.last != after:
                return 0
            refused = self._append_all(page.entries, after)
        if refused:
            raise LedgerRefused(f"{self._file} does not take {refused}", code="entry_refused")
        return len(page.entries)

    def _compare(self, after: Entry | None, page: Page) -> None:
        if after is not None and page.at is not None and page.at != after:
            raise LedgerRefused(
                f"{self._file} is of another ledger: entry {after.id} is not the same there.",
                code="source_differs",
            )
        if page.misses(after.id if after else None):
            raise LedgerRefused(
                f"Entries were archived before {self._file} had them. Begin a new copy with the "
                "archives: reelserve ledger follow --archives.",
                code="entries_archived",
            )
        archived = page.archived and page.archived.last
        if after is not None and page.at is None and after.id != archived:
            raise LedgerRefused(
                f"The ledger has lost entry {after.id}, which is the last one in {self._file}, or "
                "it is another ledger. Keep this file, and begin a new copy.",
                code="source_differs",
            )

    def _append_all(self, entries: Sequence[Entry], before: Entry | None) -> str:
        """The first that is refused and why, if one is."""
        for entry in entries:
            if why := self._append(entry, before):
                return f"entry {entry.id} ({entry.type} of {entry.user}): {why}"
            before = entry
        return ""

    def _append(self, entry: Entry, before: Entry | None) -> str:
        """Why not, if it is none that a ledger may have."""
        if before is not None and order(entry.id) <= order(before.id):
            return f"it does not come after {before.id}"
        (number,) = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM entries").fetchone()
        self._db.execute("SAVEPOINT entry")
        try:
            self._db.execute("INSERT INTO copied VALUES (?, ?)", (number, entry.id))
            self.post(
                entry.type,
                entry.user,
                entry.postings,
                at_ms=entry.at_ms,
                ref=entry.ref or None,
                of=entry.of or None,
                kind=entry.kind,
                priority=entry.priority,
                expires_ms=entry.expires_ms,
                reason=entry.reason,
            )
        except (sqlite3.IntegrityError, OverflowError) as error:
            self._db.execute("ROLLBACK TO entry")
            return str(error)
        finally:
            self._db.execute("RELEASE entry")
        return ""

    def _entry(self, row: sqlite3.Row) -> Entry:
        (entry_id,) = self._db.execute(
            "SELECT id FROM copied WHERE entry = ?", (row["id"],)
        ).fetchone()
        return replace(super()._entry(row), id=entry_id)

    async def entries(self, *, after: str | None = None, limit: int = PAGE) -> Sequence[Entry]:
        rows = self._db.execute(
            """SELECT * FROM entries
            WHERE id > coalesce((SELECT entry FROM copied WHERE id = ?), 0) ORDER BY id LIMIT ?""",
            (after, limit),
        ).fetchall()
        return [self._entry(row) for row in rows]
