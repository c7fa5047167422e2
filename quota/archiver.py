"""The cell's side of archives: what goes into the next one, and the end of what is in it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from quota.archive import Record, archive_lines
from quota.books import Books
from quota.ledger import Entry
from quota.pages import PAGE, Archived, order, read_page
from quota.redis_ledger import Runner
from serving.plan.errors import InvalidRequest, LedgerRefused

DAY_MS = 24 * 3600 * 1000
KEEP_DAYS_MIN = 8
"""A settled hold is remembered for 7 days, and must not outlive its entries."""
ENTRIES_MAX = 20_000
"""In one archive: what is made in one request, and trimmed in one script."""
STAGED_S = 3600
"""How long books stay of which nothing came."""
ATTEMPTS = 5


@dataclass(frozen=True)
class Next:
    """The archive to come, the lines of its file, and the records of the books behind it."""

    archived: Archived
    lines: Sequence[str]
    records: Sequence[Record]


class Archiver:
    """Of one cell, in any number of processes.

    Nothing is trimmed before whoever keeps the archive says that it has it, by a SHA-256 that is
    computed here once more, from the entries that are about to go.
    """

    def __init__(self, cell: Runner) -> None:
        self._cell = cell

    async def next(self, keep_days: int) -> Next | None:
        """Made of the oldest entries that are older than so many days, KEEP_DAYS_MIN at least; None
        if there are none."""
        keep_days = max(keep_days, KEEP_DAYS_MIN)
        return await self._build(f"{await self._now_ms() - keep_days * DAY_MS}-0")

    async def trim(self, number: int, last: str, sha256: str) -> Archived:
        """Trim what the archive with this number and SHA-256 has, up to its ``last`` entry. May be
        repeated. :class:`LedgerRefused`, with nothing trimmed: ``archive_differs`` if the entries
        are not those, or it is not the next one."""
        _, head = await read_books(self._cell)
        if head and (head.number, head.last, head.sha256) == (number, last, sha256):
            return head
        if order(last)[0] > await self._now_ms() - KEEP_DAYS_MIN * DAY_MS:
            raise InvalidRequest(f"Entries of the last {KEEP_DAYS_MIN} days stay.", param="last")
        made = await self._build(last)
        if made is None or (made.archived.number, made.archived.last, made.archived.sha256) != (
            number,
            last,
            sha256,
        ):
            raise _differs(head)
        staged = await self._stage(made.records)
        milliseconds, following = order(last)
        outcome = await self._cell.run(
            "archive",
            number,
            head.sha256 if head else "",
            last,
            sha256,
            made.archived.entries,
            staged,
            len(made.records),
            f"{milliseconds}-{following + 1}",
        )
        if outcome != "done":
            raise _differs((await read_page(self._cell, None, 1)).archived)
        return made.archived

    async def _build(self, up_to: str) -> Next | None:
        """Of the entries up to this id, at most ENTRIES_MAX."""
        books, head = await read_books(self._cell)
        after = head.last if head else None
        entries: list[Entry] = []
        while len(entries) < ENTRIES_MAX:
            page = await read_page(self._cell, after, min(PAGE, ENTRIES_MAX - len(entries)))
            if page.archived != head:
                raise _differs(page.archived)
            old = [entry for entry in page.entries if order(entry.id) <= order(up_to)]
            for entry in old:
                books.apply(entry)
            entries += old
            if not old or len(old) < len(page.entries):
                break
            after = old[-1].id
        if books.mistakes:
            raise LedgerRefused(
                f"What is wrong is not archived: {books.mistakes[0]}", code="ledger_wrong"
            )
        if not entries:
            return None
        records = await asyncio.to_thread(books.close)
        made = await asyncio.to_thread(archive_lines, head, entries, records)
        return Next(*made, records)

    async def _stage(self, records: Sequence[Record]) -> str:
        """Write the books to a place of their own; its token."""
        token = secrets.token_hex(8)
        name = self._cell.key("ledger", "staged", token)
        async with self._cell.answers():
            for first in range(0, len(records), PAGE):
                async with self._cell.redis.pipeline(transaction=True) as pipe:
                    pipe.hset(name, mapping=dict(records[first : first + PAGE]))
                    pipe.expire(name, STAGED_S)
                    await pipe.execute()
        return token

    async def _now_ms(self) -> int:
        """By Redis's clock, which the ids of entries are made from."""
        async with self._cell.answers():
            seconds, micros = await self._cell.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000


async def read_books(cell: Runner) -> tuple[Books, Archived | None]:
    """The books as of the newest archive, and which that is; empty ones if there is none."""
    for _ in range(ATTEMPTS):
        head = (await read_page(cell, None, 1)).archived
        if head is None:
            return Books(), None
        name = cell.key("ledger", "books", head.sha256)
        async with cell.answers():
            # What comes twice is the same both times.
            records = dict([record async for record in cell.redis.hscan_iter(name, count=PAGE)])
        if (await read_page(cell, None, 1)).archived == head:
            return await asyncio.to_thread(
                Books.open, records.items(), head.entries, head.last
            ), head
    raise LedgerRefused("Archives are being made too fast. Try again.", code="archived")


def _differs(head: Archived | None) -> LedgerRefused:
    newest = f"archive {head.number}, whose SHA-256 is {head.sha256}" if head else "none"
    return LedgerRefused(
        f"This is not this ledger's next archive; nothing was trimmed. The newest is {newest}.",
        code="archive_differs",
    )
