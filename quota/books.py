"""The ledger made again from its entries alone: what every balance must be.

Books can be closed and opened again, so that the entries may be archived: as records, each with a
name and a value, which say all that later entries can depend on:

    grant:<ref>        <user> <amount> <left> <expired> <reversed> <priority> <expires> <created>
    hold:<job>         <user> <amount> of one that is not settled
    reversal:<ref>     <the grant's ref>, of one that was not undone
    ref:<ref>          nothing: any other ref
    debt:<user>        the balance, if it is not 0; and so are the cell's accounts
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from quota.ledger import NEVER_MS, Entry, EntryType, HoldState


@dataclass
class GrantBook:
    """What became of one grant; its ``place`` is its turn among the user's grants."""

    user: str
    amount: int
    expires_ms: int
    place: str
    expired: int = 0
    reversed: int = 0


@dataclass
class HoldBook:
    user: str
    amount: int
    state: HoldState = HoldState.HELD
    captured: int = 0


@dataclass
class UserBook:
    """Whose grants and holds these are: refs and jobs, in order."""

    grants: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)


class Books:
    """Apply entries in their order; ``mistakes`` says what no ledger may hold."""

    def __init__(self) -> None:
        self.accounts: defaultdict[str, int] = defaultdict(int)
        self.grants: dict[str, GrantBook] = {}
        self.reversals: dict[str, str] = {}
        """Those that were not undone, and the grant of each."""
        self.holds: dict[str, HoldBook] = {}
        self.users: defaultdict[str, UserBook] = defaultdict(UserBook)
        self.refs: set[str] = set()
        self.mistakes: list[str] = []
        self.count = 0
        self.last: str | None = None

    def close(self) -> list[tuple[str, str]]:
        """The records, in the order of their names."""
        records = [
            (f"grant:{ref}", " ".join(map(str, _grant_values(book, self.left(ref)))))
            for ref, book in self.grants.items()
        ]
        live = ((job, book) for job, book in self.holds.items() if book.state is HoldState.HELD)
        records += [(f"hold:{job}", f"{book.user} {book.amount}") for job, book in live]
        records += [(f"reversal:{ref}", grant) for ref, grant in self.reversals.items()]
        others = self.refs - self.grants.keys() - self.reversals.keys()
        records += [(f"ref:{ref}", "") for ref in others]
        records += [
            (account, str(amount))
            for account, amount in self.accounts.items()
            if amount and account.startswith(("debt:", "cell:"))
        ]
        return sorted(records)

    @classmethod
    def open(cls, records: Iterable[tuple[str, str]], count: int, last: str | None) -> Self:
        """From the records of so many entries; ValueError if they are none."""
        books = cls()
        books.count, books.last = count, last
        for name, value in records:
            kind, _, rest = name.partition(":")
            match kind:
                case "grant":
                    books._open_grant(rest, value)
                case "hold":
                    user, amount = value.split(" ")
                    books.holds[rest] = HoldBook(user, int(amount))
                    books.users[user].holds.append(rest)
                    books.accounts[name] = int(amount)
                case "reversal":
                    books.reversals[rest] = value
                    books.refs.add(rest)
                case "ref":
                    books.refs.add(rest)
                case "debt" | "cell":
                    books.accounts[name] = int(value)
                case _:
                    raise ValueError(f"no record of books: {name}")
        return books

    def _open_grant(self, ref: str, value: str) -> None:
        user, amount, left, expired, reversed_, turn = value.split(" ", 5)
        expires_ms = int(turn.split(" ")[1])
        self.grants[ref] = GrantBook(
            user, int(amount), expires_ms, f"{turn} {ref}", int(expired), int(reversed_)
        )
        self.accounts[f"grant:{ref}"] = int(left)
        self.users[user].grants.append(ref)
        self.refs.add(ref)

    def left(self, ref: str) -> int:
        return self.accounts[f"grant:{ref}"]

    def available(self, user: str) -> int:
        return sum(self.left(ref) for ref in self.users[user].grants)

    def held(self, user: str) -> int:
        return sum(self.accounts[f"hold:{job}"] for job in self.users[user].holds)

    def debt(self, user: str) -> int:
        return -self.accounts[f"debt:{user}"]

    def apply(self, entry: Entry) -> None:
        self.count, self.last = self.count + 1, entry.id
        self.users.setdefault(entry.user, UserBook())
        if entry.ref:
            if entry.ref in self.refs:
                self._mistake(entry, f"the ref '{entry.ref}' was used before")
            self.refs.add(entry.ref)
        self._describe(entry)
        if sum(entry.postings.values()) != 0 or not entry.postings:
            self._mistake(entry, "its postings do not add up to zero")
        for account, amount in entry.postings.items():
            self.accounts[account] += amount
            owes = account == "cell:issued" or account.startswith("debt:")
            if self.accounts[account] * (-1 if owes else 1) < 0:
                self._mistake(entry, f"{account} becomes {self.accounts[account]}")
            if account.startswith("debt:") and account != f"debt:{entry.user}":
                self._mistake(entry, f"it is not about the owner of {account}")
            if account.startswith("grant:") and (
                (book := self.grants.get(account[6:])) is None or book.user != entry.user
            ):
                self._mistake(entry, f"{account} is not a grant of the user's")
        settles = entry.type in (EntryType.CAPTURE, EntryType.RELEASE)
        if settles and (left := self.accounts[f"hold:{entry.of}"]):
            self._mistake(entry, f"hold:{entry.of} is settled and has {left} left")

    def _describe(self, entry: Entry) -> None:
        """What an entry says beside its amounts."""
        issued = entry.postings.get("cell:issued", 0)
        match entry.type:
            case EntryType.GRANT:
                expires_ms = NEVER_MS if entry.expires_ms is None else entry.expires_ms
                turn = f"{entry.priority or 0:03d} {expires_ms:015d} {entry.at_ms:015d} {entry.ref}"
                self.grants[entry.ref] = GrantBook(entry.user, -issued, expires_ms, turn)
                self.users[entry.user].grants.append(entry.ref)
            case EntryType.HOLD:
                if entry.of in self.holds:
                    self._mistake(entry, f"'{entry.of}' was held before")
                amount = entry.postings.get(f"hold:{entry.of}", 0)
                self.holds[entry.of] = HoldBook(entry.user, amount)
                self.users[entry.user].holds.append(entry.of)
            case EntryType.CAPTURE | EntryType.RELEASE:
                self._settle(entry)
            case EntryType.EXPIRY:
                self._of_grant(entry, entry.of, expired=entry.postings.get("cell:expired", 0))
            case EntryType.REVERSAL:
                self.reversals[entry.ref] = entry.of
                expired = entry.postings.get("cell:expired", 0)
                self._of_grant(entry, entry.of, expired=expired, reversed_=issued)
            case EntryType.RESTORATION:
                grant = self.reversals.pop(entry.of, None)
                if grant is None:
                    self._mistake(entry, f"there is no reversal '{entry.of}' to undo")
                else:
                    expired = entry.postings.get("cell:expired", 0)
                    self._of_grant(entry, grant, expired=expired, reversed_=issued)
            case EntryType.ADJUSTMENT:
                for account, amount in entry.postings.items():
                    if account.startswith("grant:"):
                        self._of_grant(entry, account[6:], reversed_=-amount)

    def _settle(self, entry: Entry) -> None:
        hold = self.holds.get(entry.of)
        if hold is None or hold.user != entry.user:
            self._mistake(entry, f"there is no hold '{entry.of}' of the user's")
        elif hold.state is not HoldState.HELD:
            self._mistake(entry, f"'{entry.of}' was {hold.state} before")
        else:
            captured = entry.type is EntryType.CAPTURE
            hold.state = HoldState.CAPTURED if captured else HoldState.RELEASED
            hold.captured = entry.postings.get("cell:earned", 0)

    def _of_grant(self, entry: Entry, ref: str, *, expired: int = 0, reversed_: int = 0) -> None:
        book = self.grants.get(ref)
        if book is None:
            self._mistake(entry, f"there is no grant '{ref}'")
            return
        book.expired += expired
        book.reversed += reversed_
        if not 0 <= book.reversed <= book.amount or book.expired < 0:
            self._mistake(entry, f"more of the grant '{ref}' goes than there was")

    def _mistake(self, entry: Entry, what: str) -> None:
        self.mistakes.append(f"entry {entry.id} ({entry.type} of {entry.user}): {what}")


def _grant_values(book: GrantBook, left: int) -> tuple[object, ...]:
    turn = book.place.rpartition(" ")[0]
    return book.user, book.amount, left, book.expired, book.reversed, turn
