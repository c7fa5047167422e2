"""The ledger's stream, read in pages between which nothing can be missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from quota.ledger import Entry, EntryType, Kind
from serving.plan.errors import LedgerRefused

if TYPE_CHECKING:
    from quota.redis_ledger import Runner

PAGE = 1000
COLUMNS = ("type", "user", "at_ms", "ref", "of", "kind", "priority", "expires_ms", "reason")


@dataclass(frozen=True)
class Archived:
    """The newest archive: its number, the id of the last entry in it, its SHA-256, and how many
    entries it and those before it have: those are no longer in the stream."""

    number: int
    last: str
    sha256: str
    entries: int

    @classmethod
    def from_fields(cls, raw: Mapping[str, Any]) -> Self | None:
        """None: nothing was archived yet."""
        if not raw:
            return None
        return cls(int(raw["number"]), raw["last"], raw["sha256"], int(raw["entries"]))


@dataclass(frozen=True)
class Page:
    """Some of the entries behind one, the oldest first, and that one ``at`` which they were asked
    for, as it is now; all as of the same moment. ``at`` is None if it was none, or is not there."""

    at: Entry | None
    entries: Sequence[Entry]
    archived: Archived | None

    @classmethod
    def from_object(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            None if raw["at"] is None else from_object(raw["at"]),
            [from_object(entry) for entry in raw["data"]],
            Archived.from_fields(raw["archived"] or {}),
        )

    def as_object(self) -> dict[str, Any]:
        return {
            "at": None if self.at is None else as_object(self.at),
            "data": [as_object(entry) for entry in self.entries],
            "archived": None if self.archived is None else asdict(self.archived),
        }

    def misses(self, after: str | None) -> bool:
        """Whether entries behind the one with this id were archived, and so are not here."""
        if self.archived is None:
            return False
        return after is None or order(after) < order(self.archived.last)


async def read_page(cell: Runner, after: str | None, limit: int = PAGE) -> Page:
    """The entries behind the one with this id; :class:`LedgerRefused` (``entry_unreadable``)."""
    stream = cell.key("ledger")
    async with cell.answers(), cell.redis.pipeline(transaction=True) as pipe:
        pipe.xrange(stream, after or "-", after or "-")
        pipe.xrange(stream, "-" if after is None else f"({after}", "+", limit)
        pipe.hgetall(cell.key("ledger", "archived"))
        at, rows, archived = await pipe.execute()
    found = [_entry(*row) for row in [*at, *rows]]
    return Page(found[0] if at else None, found[len(at) :], Archived.from_fields(archived))


def _entry(entry_id: str, raw: Mapping[str, str]) -> Entry:
    try:
        return Entry.from_fields(entry_id, raw)
    except (KeyError, ValueError) as error:
        raise LedgerRefused(
            f"Entry {entry_id} cannot be read: {error!r}", code="entry_unreadable"
        ) from error


def as_object(entry: Entry) -> dict[str, Any]:
    """Amounts in milli-credits; what is empty is left out."""
    told = {name: getattr(entry, name) for name in COLUMNS}
    line = {"id": entry.id, **told, "postings": dict(entry.postings)}
    return {name: value for name, value in line.items() if value not in ("", None)}


def from_object(raw: Mapping[str, Any]) -> Entry:
    """What :func:`as_object` made; ValueError or KeyError if it is none."""
    return Entry(
        id=raw["id"],
        type=EntryType(raw["type"]),
        user=raw["user"],
        at_ms=int(raw["at_ms"]),
        postings={name: int(amount) for name, amount in raw["postings"].items()},
        ref=raw.get("ref", ""),
        of=raw.get("of", ""),
        kind=Kind(raw["kind"]) if "kind" in raw else None,
        priority=raw.get("priority"),
        expires_ms=raw.get("expires_ms"),
        reason=raw.get("reason", ""),
    )


def order(entry_id: str) -> tuple[int, int]:
    """By which ids of the stream are compared."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)
