"""The ledger in one SQLite file, whose constraints make a bad posting impossible.

It keeps no balance that it could get wrong: what a grant has left is its account, and what was
reversed or expired of it is asked of the entries. So it is what the ledger in Redis is held to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from quota.ledger import (
    AMOUNT_MAX,
    NEVER_MS,
    PRIORITIES,
    Balance,
    Entry,
    EntryType,
    Grant,
    HoldState,
    Kind,
    Settlement,
    check_amount,
    check_grant,
    check_names,
    check_reason,
    refusal,
)

GRANTS_MAX = 1000
"""Grants of a user that have something left; a purchase is never refused."""

_BURN_ORDER = f"""
    SELECT entries.*, balance, -(SELECT amount FROM postings WHERE entry = entries.id
                                 AND account = 'cell:issued') AS amount
    FROM entries JOIN accounts ON account = 'grant:' || ref
    WHERE user = ? AND type = 'grant' AND balance > 0
    ORDER BY priority, coalesce(expires_ms, {NEVER_MS}), at_ms, ref LIMIT {GRANTS_MAX}"""  # noqa: S608


class SqliteLedger:
    """:class:`quota.ledger.Ledger` of one file, for one thread. ``now_ms``: since the epoch."""

    def __init__(self, file: Path, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript((files("quota") / "sql" / "ledger.sql").read_text())

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def post(
        self, what: EntryType, user: str, postings: Mapping[str, int], **fields: str | int | None
    ) -> str:
        """Append one entry within a transaction; sqlite3.IntegrityError if it is no good."""
        (entry,) = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM entries").fetchone()
        names = ("ref", "of", "kind", "priority", "expires_ms")
        self._db.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(entry, what, user, fields.get("at_ms", self._now_ms())),
                *(fields.get(name) for name in names),
                fields.get("reason", ""),
                entry,
            ),
        )
        rows = [(entry, account, amount) for account, amount in postings.items() if amount]
        self._db.executemany("INSERT INTO postings VALUES (?, ?, ?)", rows)
        self._db.execute("INSERT INTO seals VALUES (?)", (entry,))
        return str(entry)

    def _account(self, account: str) -> int:
        row = self._db.execute("SELECT balance FROM accounts WHERE account = ?", (account,))
        return sum(balance for (balance,) in row)

    def _debt(self, user: str) -> int:
        return -self._account(f"debt:{user}")

    def _find(self, column: str, name: str, *types: EntryType) -> Entry | None:
        """The first entry of these types whose ``ref`` or ``of`` it is."""
        marks = ", ".join("?" * len(types))
        row = self._db.execute(
            f"SELECT * FROM entries WHERE {column} = ? AND type IN ({marks}) ORDER BY id",  # noqa: S608
            (name, *types),
        ).fetchone()
        return self._entry(row) if row else None

    def _entry(self, row: sqlite3.Row) -> Entry:
        postings = self._db.execute(
            "SELECT account, amount FROM postings WHERE entry = ?", (row["id"],)
        )
        return Entry(
            id=str(row["id"]),
            type=EntryType(row["type"]),
            user=row["user"],
            at_ms=row["at_ms"],
            postings=dict(map(tuple, postings)),
            ref=row["ref"] or "",
            of=row["of"] or "",
            kind=Kind(row["kind"]) if row["kind"] else None,
            priority=row["priority"],
            expires_ms=row["expires_ms"],
            reason=row["reason"],
        )

    def _again(self, ref: str, **same: object) -> str | None:
        """The id of the entry that has this ref, which must be the same."""
        was = self._find("ref", ref, *EntryType)
        if was is None:
            return None
        issued = abs(was.postings.get("cell:issued", 0))
        if any((issued if name == "amount" else getattr(was, name)) != same[name] for name in same):
            raise refusal("reused")
        return was.id

    async def grant(
        self,
        user: str,
        *,
        ref: str,
        amount: int,
        kind: Kind,
        priority: int | None = None,
        expires_ms: int | None = None,
        reason: str = "",
    ) -> str:
        check_names(user=user, ref=ref)
        check_amount(amount)
        priority = PRIORITIES[kind] if priority is None else priority
        check_grant(priority, expires_ms)
        check_reason(reason)
        with self._writing():
            if was := self._again(ref, type=EntryType.GRANT, user=user, amount=amount, kind=kind):
                return was
            if expires_ms is not None and expires_ms <= self._now_ms():
                raise refusal("past")
            live = self._db.execute(_BURN_ORDER, (user,)).fetchall()
            if kind is not Kind.PURCHASE and len(live) >= GRANTS_MAX:
                raise refusal("many")
            if amount - self._account("cell:issued") > AMOUNT_MAX:
                raise refusal("total")
            return self.post(
                EntryType.GRANT,
                user,
                {"cell:issued": -amount, **self._given(user, ref, amount)},
                ref=ref,
                kind=kind,
                priority=priority,
                expires_ms=expires_ms,
                reason=reason,
            )

    def _given(self, user: str, ref: str, amount: int) -> dict[str, int]:
        paid = min(self._debt(user), amount)
        return {f"debt:{user}": paid, f"grant:{ref}": amount - paid}

    async def take(self, user: str, *, ref: str, amount: int, reason: str) -> str:
        check_names(user=user, ref=ref)
        check_amount(amount)
        check_reason(reason)
        with self._writing():
            if was := self._again(ref, type=EntryType.ADJUSTMENT, user=user, amount=amount):
                return was
            postings = {"cell:issued": amount, **self._burnt(user, amount)}
            return self.post(EntryType.ADJUSTMENT, user, postings, ref=ref, reason=reason)

    def _live(self, user: str) -> list[sqlite3.Row]:
        now = self._now_ms()
        rows = self._db.execute(_BURN_ORDER, (user,)).fetchall()
        return [row for row in rows if row["expires_ms"] is None or row["expires_ms"] > now]

    def _burnt(self, user: str, amount: int) -> dict[str, int]:
        if debt := self._debt(user):
            raise refusal("debt", debt)
        parts: dict[str, int] = {}
        need = amount
        for row in self._live(user):
            part = min(row["balance"], need)
            if part:
                parts[f"grant:{row['ref']}"] = -part
            need -= part
        if need:
            raise refusal("short", amount - need)
        return parts

    async def hold(self, user: str, job: str, amount: int) -> None:
        check_names(user=user, job=job)
        check_amount(amount)
        with self._writing():
            if was := self._find("of", job, EntryType.HOLD):
                if (was.user, was.postings[f"hold:{job}"]) != (user, amount):
                    raise refusal("reused")
                if self._find("of", job, EntryType.CAPTURE, EntryType.RELEASE):
                    raise refusal("settled")
                return
            postings = {f"hold:{job}": amount, **self._burnt(user, amount)}
            self.post(EntryType.HOLD, user, postings, of=job)

    async def capture(self, job: str, amount: int) -> Settlement | None:
        check_amount(amount, least=0)
        return self._settle(job, EntryType.CAPTURE, amount)

    async def release(self, job: str) -> Settlement | None:
        return self._settle(job, EntryType.RELEASE, 0)

    def _settle(self, job: str, kind: EntryType, amount: int) -> Settlement | None:
        with self._writing():
            held = self._find("of", job, EntryType.HOLD)
            if held is None:
                return None
            was = self._find("of", job, EntryType.CAPTURE, EntryType.RELEASE)
            if was is None:
                was = self._settled(held, kind, amount)
            captured = was.postings.get("cell:earned", 0)
            states = {EntryType.CAPTURE: HoldState.CAPTURED, EntryType.RELEASE: HoldState.RELEASED}
            return Settlement(states[was.type], captured)

    def _settled(self, held: Entry, kind: EntryType, amount: int) -> Entry:
        job, user, total = held.of, held.user, held.postings[f"hold:{held.of}"]
        if amount > total:
            raise refusal("much", total)
        postings = {f"hold:{job}": -total, "cell:earned": amount}
        debt, owed, back = self._debt(user), self._debt(user), []
        for ref in self._in_order(set(held.postings) - {f"hold:{job}"}):
            part = -held.postings[f"grant:{ref}"]
            taken = min(amount, part)
            amount -= taken
            paid = min(debt, part - taken)
            debt -= paid
            if part - taken > paid:
                postings[f"grant:{ref}"] = part - taken - paid
                back.append(ref)
        postings[f"debt:{user}"] = owed - debt
        entry = self.post(kind, user, postings, of=job)
        for ref in back:
            self._expire(ref)
        row = self._db.execute("SELECT * FROM entries WHERE id = ?", (entry,)).fetchone()
        return self._entry(row)

    def _in_order(self, accounts: Collection[str]) -> list[str]:
        """Refs of grants, as they are used."""
        names = (account.partition(":")[2] for account in accounts)
        found = [self._find("ref", ref, EntryType.GRANT) for ref in names]
        return [entry.ref for entry in sorted(filter(None, found), key=_burn_key)]

    async def reverse(
        self, of: str, *, ref: str, amount: int | None = None, reason: str = ""
    ) -> str:
        check_names(of=of, ref=ref)
        if amount is not None:
            check_amount(amount)
        check_reason(reason)
        with self._writing():
            same: dict[str, object] = {"of": of} if amount is None else {"of": of, "amount": amount}
            if was := self._again(ref, **same):
                return was
            match self._find("ref", of, EntryType.GRANT, EntryType.REVERSAL):
                case Entry(type=EntryType.GRANT) as granted:
                    return self._reverse(granted, ref, amount, reason)
                case Entry() as reversal:
                    return self._restore(reversal, ref, amount, reason)
            raise refusal("unknown")

    def _reverse(self, granted: Entry, ref: str, amount: int | None, reason: str) -> str:
        user, of = granted.user, granted.ref
        most = -granted.postings["cell:issued"] - self._reversed(of)
        if most == 0:
            raise refusal("reversed")
        amount = most if amount is None else amount
        if amount > most:
            raise refusal("much", most)
        from_left = min(self._account(f"grant:{of}"), amount)
        from_expired = min(self._expired(of), amount - from_left)
        postings = {
            f"grant:{of}": -from_left,
            "cell:expired": -from_expired,
            f"debt:{user}": -(amount - from_left - from_expired),
            "cell:issued": amount,
        }
        return self.post(EntryType.REVERSAL, user, postings, ref=ref, of=of, reason=reason)

    def _restore(self, reversal: Entry, ref: str, amount: int | None, reason: str) -> str:
        most = reversal.postings["cell:issued"]
        if self._find("of", reversal.ref, EntryType.RESTORATION):
            raise refusal("reversed")
        if amount not in (None, most):
            raise refusal("much", most)
        user, grant_ref = reversal.user, reversal.of
        gone = -reversal.postings.get("cell:expired", 0)
        postings = {
            "cell:issued": -most,
            "cell:expired": gone,
            **self._given(user, grant_ref, most - gone),
        }
        entry = self.post(
            EntryType.RESTORATION, user, postings, ref=ref, of=reversal.ref, reason=reason
        )
        self._expire(grant_ref)
        return entry

    def _reversed(self, ref: str) -> int:
        """Of a grant: by reversals that were not undone, and by adjustments."""
        (amount,) = self._db.execute(
            """SELECT coalesce(sum(CASE entries.type WHEN 'reversal' THEN postings.amount
                                   ELSE -postings.amount END), 0)
            FROM entries JOIN postings ON entry = entries.id
            WHERE (type = 'reversal' AND of = :ref AND account = 'cell:issued'
                   AND NOT EXISTS (SELECT 1 FROM entries AS undone
                                   WHERE undone.type = 'restoration' AND undone.of = entries.ref))
               OR (type = 'adjustment' AND account = 'grant:' || :ref)""",
            {"ref": ref},
        ).fetchone()
        return int(amount)

    def _expired(self, ref: str) -> int:
        (amount,) = self._db.execute(
            """SELECT coalesce(sum(amount), 0) FROM entries JOIN postings ON entry = entries.id
            WHERE account = 'cell:expired' AND (
                (of = :ref AND type IN ('expiry', 'reversal'))
                OR (type = 'restoration' AND of IN (
                    SELECT ref FROM entries WHERE type = 'reversal' AND of = :ref)))""",
            {"ref": ref},
        ).fetchone()
        return int(amount)

    def _expire(self, ref: str) -> None:
        granted, left = self._find("ref", ref, EntryType.GRANT), self._account(f"grant:{ref}")
        assert granted is not None  # noqa: S101
        expires_ms = granted.expires_ms
        if left and expires_ms is not None and expires_ms <= self._now_ms():
            postings = {f"grant:{ref}": -left, "cell:expired": left}
            self.post(EntryType.EXPIRY, granted.user, postings, of=ref)

    async def expire(self, most: int = 100) -> int:
        with self._writing():
            due = self._db.execute(
                """SELECT ref FROM entries JOIN accounts ON account = 'grant:' || ref
                WHERE type = 'grant' AND balance > 0 AND expires_ms <= ?
                ORDER BY expires_ms, ref LIMIT ?""",
                (self._now_ms(), most),
            ).fetchall()
            for (ref,) in due:
                self._expire(ref)
        return len(due)

    async def balance(self, user: str) -> Balance:
        grants = [
            Grant(
                ref=row["ref"],
                kind=Kind(row["kind"]),
                amount=row["amount"],
                left=row["balance"],
                priority=row["priority"],
                created_ms=row["at_ms"],
                expires_ms=row["expires_ms"],
            )
            for row in self._live(user)
        ]
        (held,) = self._db.execute(
            """SELECT coalesce(sum(balance), 0)
            FROM entries JOIN accounts ON account = 'hold:' || of
            WHERE user = ? AND type = 'hold'""",
            (user,),
        ).fetchone()
        debt = self._debt(user)
        return Balance(0 if debt else sum(grant.left for grant in grants), held, debt, grants)

    async def entries(self, *, after: str | None = None, limit: int = 1000) -> Sequence[Entry]:
        rows = self._db.execute(
            "SELECT * FROM entries WHERE id > ? ORDER BY id LIMIT ?", (int(after or 0), limit)
        ).fetchall()
        return [self._entry(row) for row in rows]

    async def history(
        self, user: str, *, before: str | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        rows = self._db.execute(
            "SELECT * FROM entries WHERE user = ? AND id < ? ORDER BY id DESC LIMIT ?",
            (user, int(before or AMOUNT_MAX), limit),
        ).fetchall()
        return [self._entry(row) for row in rows]


def _burn_key(granted: Entry) -> tuple[int, int, int, str]:
    expires_ms = NEVER_MS if granted.expires_ms is None else granted.expires_ms
    return granted.priority or 0, expires_ms, granted.at_ms, granted.ref
