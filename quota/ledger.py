"""The credit ledger: its plain values, and what every implementation of it does.

Amounts are integers in milli-credits. Every entry moves amounts between accounts and adds up to
zero; entries are never changed. Accounts: ``grant:<ref>`` (what is left of a grant),
``hold:<job>`` (set aside for a job), ``debt:<user>`` (0 or less), and of the whole cell
``cell:issued`` (0 or less), ``cell:earned`` and ``cell:expired``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

from serving.plan.errors import InvalidRequest, LedgerRefused
from serving.plan.price import MILLI

AMOUNT_MAX = 2**53 - 1
"""Lua counts in doubles, which are exact up to here."""
NEVER_MS = 999_999_999_999_999
PRIORITY_MAX = 999
NAME = re.compile(r"[!-~]{1,200}")
"""Of a user, a reference or a job."""
REASON_MAX = 500


class Kind(StrEnum):
    """Why credits were given."""

    PROMOTION = "promotion"
    ADJUSTMENT = "adjustment"
    PURCHASE = "purchase"


PRIORITIES: Mapping[Kind, int] = {Kind.PROMOTION: 0, Kind.ADJUSTMENT: 50, Kind.PURCHASE: 100}
"""What is used first, unless a grant says otherwise: what was free."""


class EntryType(StrEnum):
    GRANT = "grant"
    HOLD = "hold"
    CAPTURE = "capture"
    RELEASE = "release"
    EXPIRY = "expiry"
    REVERSAL = "reversal"
    RESTORATION = "restoration"
    ADJUSTMENT = "adjustment"


@dataclass(frozen=True)
class Entry:
    """One entry. ``ref`` is its own, unique, if it has one; ``of`` is what it is about: the ref of
    a grant or of a reversal, or a job. ``postings``: accounts and what they gained, which adds up
    to zero. The id orders entries and means nothing else."""

    id: str
    type: EntryType
    user: str
    at_ms: int
    postings: Mapping[str, int]
    ref: str = ""
    of: str = ""
    kind: Kind | None = None
    priority: int | None = None
    expires_ms: int | None = None
    reason: str = ""

    @classmethod
    def from_fields(cls, entry_id: str, raw: Mapping[str, str]) -> Self:
        """From the fields of the stream; accounts are those with a colon."""
        return cls(
            id=entry_id,
            type=EntryType(raw["type"]),
            user=raw["user"],
            at_ms=int(raw["at_ms"]),
            postings={name: int(value) for name, value in raw.items() if ":" in name},
            ref=raw.get("ref", ""),
            of=raw.get("of", ""),
            kind=Kind(raw["kind"]) if "kind" in raw else None,
            priority=int(raw["priority"]) if "priority" in raw else None,
            expires_ms=int(raw["expires_ms"]) if "expires_ms" in raw else None,
            reason=raw.get("reason", ""),
        )


@dataclass(frozen=True)
class Grant:
    """A grant of which something is left. ``expires_ms`` of None: never."""

    ref: str
    kind: Kind
    amount: int
    left: int
    priority: int
    created_ms: int
    expires_ms: int | None


@dataclass(frozen=True)
class Balance:
    """``spendable`` is nothing while there is a ``debt``. ``grants`` are in the order they are
    used."""

    spendable: int
    held: int
    debt: int
    grants: Sequence[Grant]


@dataclass(frozen=True)
class Sums:
    """Of all users: ``held`` now; ``captured`` and ``released`` from holds, ever."""

    held: int
    captured: int
    released: int


@dataclass(frozen=True)
class Verified:
    """The last time all balances were made again: when, as a Unix time, and how many differed."""

    at_s: float
    differences: int


class HoldState(StrEnum):
    HELD = "held"
    CAPTURED = "captured"
    RELEASED = "released"


@dataclass(frozen=True)
class Settlement:
    """How a hold ended, whoever ended it first, and what was ``captured`` of it."""

    state: HoldState
    captured: int


class Ledger(Protocol):
    """Each method may be repeated after a lost answer: it does its work once.

    What cannot be booked is a :class:`LedgerRefused` whose ``code`` says why; arguments that make
    no sense are an :class:`InvalidRequest`. Nothing is booked then.
    """

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
        """Give credits; what the user owes is paid first. The same ``ref`` (of a payment, say)
        again grants nothing. Returns the entry's id."""
        ...

    async def take(self, user: str, *, ref: str, amount: int, reason: str) -> str:
        """Adjust downwards, by no more than may be spent. Returns the entry's id."""
        ...

    async def hold(self, user: str, job: str, amount: int) -> None:
        """Set a price aside for a job, from the grants in their order."""
        ...

    async def capture(self, job: str, amount: int) -> Settlement | None:
        """Take so much of what is held, at most all; the rest goes back. None: nothing is held."""
        ...

    async def release(self, job: str) -> Settlement | None:
        """Give all of it back. What has expired meanwhile expires at once."""
        ...

    async def reverse(
        self, of: str, *, ref: str, amount: int | None = None, reason: str = ""
    ) -> str:
        """Take back the grant ``of`` (a refund, a chargeback), or an amount of it: what is left,
        and the rest becomes a debt. Or undo the reversal ``of``. Returns the entry's id."""
        ...

    async def expire(self, most: int = 100) -> int:
        """Book grants that have expired, at most so many; how many there were."""
        ...

    async def balance(self, user: str) -> Balance: ...

    async def entries(self, *, after: str | None = None, limit: int = 1000) -> Sequence[Entry]:
        """The entries behind the one with this id, the oldest first."""
        ...

    async def history(
        self, user: str, *, before: str | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        """A user's latest entries, the newest first, before the one with this id."""
        ...


def check_names(**names: str) -> None:
    for field, name in names.items():
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"'{field}' must be 1 to 200 characters of ASCII without spaces.", param=field
            )


def check_amount(amount: int, least: int = 1) -> None:
    if not least <= amount <= AMOUNT_MAX:
        raise InvalidRequest(
            f"'amount' must be {least} to {AMOUNT_MAX} milli-credits, not {amount}.",
            param="amount",
        )


def check_grant(priority: int, expires_ms: int | None) -> None:
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidRequest(f"'priority' must be 0 to {PRIORITY_MAX}.", param="priority")
    if expires_ms is not None and not 0 < expires_ms < NEVER_MS:
        raise InvalidRequest("'expires_ms' must be ms since the epoch.", param="expires_ms")


def check_reason(reason: str) -> None:
    if len(reason) > REASON_MAX:
        raise InvalidRequest(f"'reason' has more than {REASON_MAX} characters.", param="reason")


_REFUSALS = {
    "reused": ("ref_reused", "This reference stands for something else. Use a new one."),
    "settled": ("hold_settled", "What was held for this job has been settled."),
    "past": ("grant_expired", "These credits would have expired already."),
    "many": ("too_many_grants", "The user has too many grants that are not used up."),
    "total": ("ledger_full", "The ledger's total would grow too large to be counted exactly."),
    "unknown": ("unknown_ref", "There is no grant, and no reversal, with this reference."),
    "reversed": ("already_reversed", "All of it is reversed already."),
    "much": ("amount_too_large", "At most {told} credits are there to be taken."),
    "debt": ("credits_owed", "{told} credits are owed and have to be paid first."),
    "short": ("insufficient_credits", "Only {told} credits may be spent."),
}


def refusal(outcome: str, told: str | int = "") -> LedgerRefused:
    """What an implementation raises for an outcome of ``quota/lua``."""
    code, message = _REFUSALS[outcome]
    if "{told}" in message:
        message = message.format(told=f"{int(told) / MILLI:.15g}")
    return LedgerRefused(message, code=code)
