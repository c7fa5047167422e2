"""Whether the ledger's balances are what its entries say, in a cell that goes on working."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from quota.archive import digest
from quota.archiver import ATTEMPTS, read_books
from quota.books import Books
from quota.ledger import NEVER_MS, Entry, HoldState
from quota.pages import PAGE, Archived, order
from quota.redis_ledger import Runner
from serving.plan.errors import LedgerRefused

USERS_AT_ONCE = 20


@dataclass(frozen=True)
class Verification:
    """``differences`` are what is wrong in so many ``entries``; those that are ``archived`` count,
    and are taken to be what the books say that were kept of them, whose digest is ``books``."""

    entries: int
    differences: Sequence[str]
    archived: Archived | None = None
    books: str | None = None


async def verify(cell: Runner) -> Verification:
    """Make all balances, grants and holds again from the stream, on top of the books that were
    archived, if any, and compare.

    Whatever is compared is read in one transaction together with the stream's end, and compared
    with the books as of then: so work that goes on meanwhile is no difference.
    """
    for _ in range(ATTEMPTS):
        with suppress(_Trimmed):
            return await _Verifier(cell).run()
    raise LedgerRefused("Archives are being made too fast. Try again.", code="archived")


class _Trimmed(Exception):
    """Entries were archived before they were read."""


class _Verifier:
    def __init__(self, cell: Runner) -> None:
        self.cell = cell
        self.books = Books()
        self.differences: list[str] = []

    async def run(self) -> Verification:
        self.books, archived = await read_books(self.cell)
        kept = await asyncio.to_thread(lambda: digest(self.books.close())) if archived else None
        async with self.cell.answers():
            await self._read()
            known = list(self.books.users)
            for first in range(0, len(known), USERS_AT_ONCE):
                await self._users(known[first : first + USERS_AT_ONCE])
            await self._cell()
            await self._strays()
        differences = [*self.books.mistakes, *self.differences]
        return Verification(self.books.count, differences, archived, kept)

    async def _catch_up(self, end: str) -> None:
        """Apply the entries up to this one."""
        while end and self.books.last != end:
            start = "-" if self.books.last is None else f"({self.books.last}"
            async with self.cell.redis.pipeline(transaction=True) as pipe:
                pipe.hget(self.cell.key("ledger", "archived"), "last")
                pipe.xrange(self.cell.key("ledger"), start, end, PAGE)
                archived, rows = await pipe.execute()
            self._check_trimmed(archived)
            for entry_id, raw in rows:
                try:
                    entry = Entry.from_fields(entry_id, raw)
                except (KeyError, ValueError) as error:
                    self.books.last = entry_id
                    self.differences.append(f"entry {entry_id} cannot be read: {error!r}")
                else:
                    self.books.apply(entry)
            if not rows:
                return

    async def _read(self, *reads: tuple[str, str]) -> list[Any]:
        """What these keys hold, and the books as of the same moment."""
        async with self.cell.redis.pipeline(transaction=True) as pipe:
            pipe.hget(self.cell.key("ledger", "archived"), "last")
            pipe.xrevrange(self.cell.key("ledger"), "+", "-", 1)
            for kind, name in reads:
                pipe.hgetall(name) if kind == "hash" else pipe.zrange(name, 0, -1)
            archived, end, *found = list(await pipe.execute())
        self._check_trimmed(archived)
        await self._catch_up(_last(end))
        return found

    def _check_trimmed(self, archived: str | None) -> None:
        if archived and (self.books.last is None or order(archived) > order(self.books.last)):
            raise _Trimmed

    async def _users(self, users: Sequence[str]) -> None:
        books, key = self.books, self.cell.key
        grants = [ref for user in users for ref in books.users[user].grants]
        holds = [job for user in users for job in books.users[user].holds]
        found = await self._read(
            *(("hash", key("credits", user)) for user in users),
            *(("zset", key("grants", user)) for user in users),
            *(("hash", key("credit", ref)) for ref in grants),
            *(("hash", key("hold", job)) for job in holds),
        )
        for user in users:
            has = {name: int(value) for name, value in found.pop(0).items()}
            says = {
                "available": books.available(user),
                "held": books.held(user),
                "debt": books.debt(user),
            }
            for name, value in says.items():
                self._compare(f"{user}: {name}", has.get(name, 0), value)
        for user in users:
            live = [books.grants[ref].place for ref in books.users[user].grants if books.left(ref)]
            self._compare(f"{user}: grants to use", found.pop(0), sorted(live))
        for ref in grants:
            self._grant(ref, found.pop(0))
        for job in holds:
            self._hold(job, found.pop(0))

    def _grant(self, ref: str, has: dict[str, str]) -> None:
        book = self.books.grants[ref]
        says = {
            "type": "grant",
            "user": book.user,
            "amount": book.amount,
            "left": self.books.left(ref),
            "expired": book.expired,
            "reversed": book.reversed,
            "expires_ms": book.expires_ms,
        }
        for name, value in says.items():
            self._compare(f"grant {ref}: {name}", has.get(name), str(value))

    def _hold(self, job: str, has: dict[str, str]) -> None:
        book = self.books.holds[job]
        if not has and book.state is not HoldState.HELD:
            return  # A settled hold is forgotten after a while.
        says = {
            "user": book.user,
            "amount": book.amount,
            "state": book.state,
            "captured": book.captured,
        }
        for name, value in says.items():
            self._compare(f"hold {job}: {name}", has.get(name), str(value))

    async def _cell(self) -> None:
        key, books = self.cell.key, self.books
        has, sums, expiring = await self._read(
            ("hash", key("ledger", "accounts")),
            ("hash", key("ledger", "sums")),
            ("zset", key("grants_expiring")),
        )
        held = sum(books.held(user) for user in books.users)
        self._compare("cell: held", int(sums.get("held", 0)), held)
        for name in ("issued", "earned", "expired"):
            self._compare(f"cell: {name}", int(has.get(name, 0)), books.accounts[f"cell:{name}"])
        due = {
            ref
            for ref, book in books.grants.items()
            if book.expires_ms < NEVER_MS and books.left(ref)
        }
        self._compare("grants that will expire", sorted(expiring), sorted(due))

    async def _strays(self) -> None:
        """Balances, grants and holds that no entry speaks of."""
        kinds = ("credits", "credit", "hold", "grants")
        seen = {kind: await self._names(kind) for kind in kinds}
        await self._read()
        books = self.books
        known = {
            "credits": books.users,
            "grants": books.users,
            "credit": books.refs,
            "hold": books.holds,
        }
        for kind, names in seen.items():
            for name in names:
                if name not in known[kind]:
                    self.differences.append(f"{kind} {name}: no entry speaks of it")

    async def _names(self, kind: str) -> list[str]:
        prefix = self.cell.key(kind, "")
        return [
            name.removeprefix(prefix)
            async for name in self.cell.redis.scan_iter(match=f"{prefix}*", count=PAGE)
        ]

    def _compare(self, what: str, has: object, says: object) -> None:
        if has != says:
            self.differences.append(f"{what} is {has}, its entries say {says}")


def _last(rows: Sequence[tuple[str, Any]]) -> str:
    return rows[0][0] if rows else ""
