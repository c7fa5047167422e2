"""What the ledger must do, in plain Python: no Redis, no scripts, and no care for speed.

Amounts are whole milli-credits. The time is given by whoever asks, in ms since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quota.ledger import PRIORITIES, EntryType, HoldState, Kind

Posted = tuple[EntryType, str, str, str, dict[str, int]]
"""Type, user, ref, what it is of, and its postings."""


@dataclass
class ModelGrant:
    ref: str
    user: str
    kind: Kind
    amount: int
    priority: int
    expires_ms: float | None
    created_ms: float
    left: int = 0
    expired: int = 0
    reversed: int = 0

    def live(self, now_ms: float) -> bool:
        return self.expires_ms is None or self.expires_ms > now_ms

    @property
    def turn(self) -> tuple[int, float, float, str]:
        """Grants are used in this order."""
        never = float("inf")
        return self.priority, self.expires_ms or never, self.created_ms, self.ref


@dataclass
class ModelHold:
    """``parts``: of which grant how much, in the order they were used."""

    user: str
    amount: int
    parts: list[tuple[str, int]]
    state: HoldState = HoldState.HELD
    captured: int = 0


@dataclass
class Reversal:
    user: str
    of: str
    amount: int
    expired: int = 0
    restored: bool = False


@dataclass(frozen=True)
class GrantAsked:
    user: str
    ref: str
    amount: int
    kind: Kind
    priority: int | None
    expires_ms: int | None


@dataclass
class LedgerModel:
    """What is called answers ``done``, or why it is not."""

    grants: dict[str, ModelGrant] = field(default_factory=dict)
    holds: dict[str, ModelHold] = field(default_factory=dict)
    reversals: dict[str, Reversal] = field(default_factory=dict)
    others: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """Refs of adjustments and restorations: whose, of what, and how much."""
    debts: dict[str, int] = field(default_factory=dict)
    issued: int = 0
    earned: int = 0
    expired: int = 0
    entries: list[Posted] = field(default_factory=list)

    # What there is.

    def of(self, user: str) -> list[ModelGrant]:
        """A user's grants that have something left, in the order they are used."""
        mine = (grant for grant in self.grants.values() if grant.user == user and grant.left)
        return sorted(mine, key=lambda grant: grant.turn)

    def held(self, user: str) -> int:
        mine = (hold for hold in self.holds.values() if hold.user == user)
        return sum(hold.amount for hold in mine if hold.state is HoldState.HELD)

    def debt(self, user: str) -> int:
        return self.debts.get(user, 0)

    def spendable(self, user: str, now_ms: float) -> int:
        if self.debt(user):
            return 0
        return sum(grant.left for grant in self.of(user) if grant.live(now_ms))

    def total(self) -> int:
        """Over all accounts."""
        grants = sum(grant.left for grant in self.grants.values())
        holds = sum(self.held(user) for user in {hold.user for hold in self.holds.values()})
        return grants + holds - sum(self.debts.values()) - self.issued + self.earned + self.expired

    # What is done.

    def _post(
        self, kind: EntryType, user: str, ref: str, of: str, postings: dict[str, int]
    ) -> None:
        told = {account: amount for account, amount in postings.items() if amount}
        assert told
        assert sum(told.values()) == 0
        self.entries.append((kind, user, ref, of, told))

    def _receive(self, grant: ModelGrant, amount: int) -> dict[str, int]:
        """Something comes in; what the user owes is paid first."""
        paid = min(self.debt(grant.user), amount)
        self.debts[grant.user] = self.debt(grant.user) - paid
        grant.left += amount - paid
        return {f"debt:{grant.user}": paid, f"grant:{grant.ref}": amount - paid}

    def _spend(self, user: str, amount: int, now_ms: float) -> list[tuple[str, int]]:
        """Of what there is enough."""
        parts = []
        for grant in self.of(user):
            part = min(grant.left, amount)
            if part and grant.live(now_ms):
                grant.left -= part
                amount -= part
                parts.append((grant.ref, part))
        assert not amount
        return parts

    def _known(self, ref: str) -> bool:
        return ref in self.grants or ref in self.reversals or ref in self.others

    def grant(self, asked: GrantAsked, now_ms: float) -> str:
        was = self.grants.get(asked.ref)
        if was:
            same = (was.user, was.amount, was.kind) == (asked.user, asked.amount, asked.kind)
            return "done" if same else "ref_reused"
        if self._known(asked.ref):
            return "ref_reused"
        if asked.expires_ms is not None and asked.expires_ms <= now_ms:
            return "grant_expired"
        grant = ModelGrant(
            ref=asked.ref,
            user=asked.user,
            kind=asked.kind,
            amount=asked.amount,
            priority=PRIORITIES[asked.kind] if asked.priority is None else asked.priority,
            expires_ms=asked.expires_ms,
            created_ms=now_ms,
        )
        self.grants[grant.ref] = grant
        self.issued += grant.amount
        postings = {"cell:issued": -grant.amount, **self._receive(grant, grant.amount)}
        self._post(EntryType.GRANT, grant.user, grant.ref, "", postings)
        return "done"

    def take(self, user: str, ref: str, amount: int, now_ms: float) -> str:
        if self._known(ref):
            return "done" if self.others.get(ref) == (user, "", amount) else "ref_reused"
        if self.debt(user):
            return "credits_owed"
        if self.spendable(user, now_ms) < amount:
            return "insufficient_credits"
        parts = self._spend(user, amount, now_ms)
        for grant_ref, part in parts:
            self.grants[grant_ref].reversed += part
        self.others[ref] = user, "", amount
        self.issued -= amount
        taken = {f"grant:{grant_ref}": -part for grant_ref, part in parts}
        self._post(EntryType.ADJUSTMENT, user, ref, "", {"cell:issued": amount, **taken})
        return "done"

    def hold(self, user: str, job: str, amount: int, now_ms: float) -> None:
        """Of what there is enough, for a job of which nothing is known."""
        assert job not in self.holds
        parts = self._spend(user, amount, now_ms)
        self.holds[job] = ModelHold(user, amount, parts)
        taken = {f"grant:{ref}": -part for ref, part in parts}
        self._post(EntryType.HOLD, user, "", job, {f"hold:{job}": amount, **taken})

    def settle(self, job: str, captured: int, now_ms: float) -> None:
        """The job ended. What is not taken goes back to where it came from, the last used first;
        what the user owes is paid of it, and what has expired meanwhile expires."""
        hold = self.holds[job]
        assert hold.state is HoldState.HELD
        hold.state = HoldState.CAPTURED if captured else HoldState.RELEASED
        hold.captured = captured
        self.earned += captured
        postings = {f"hold:{job}": -hold.amount, "cell:earned": captured}
        came_back = []
        for ref, part in hold.parts:
            taken = min(captured, part)
            captured -= taken
            for account, amount in self._receive(self.grants[ref], part - taken).items():
                postings[account] = postings.get(account, 0) + amount
                if amount and account == f"grant:{ref}":
                    came_back.append(ref)
        kind = EntryType.CAPTURE if hold.captured else EntryType.RELEASE
        self._post(kind, hold.user, "", job, postings)
        for ref in came_back:
            self._expire(self.grants[ref], now_ms)

    def reverse(self, of: str, ref: str, amount: int | None, now_ms: float) -> str:
        """A grant, or an amount of it, is taken back; or, if ``of`` is that, that is undone."""
        if self._known(ref):
            was = self.reversals.get(ref)
            _, was_of, was_amount = self.others.get(ref, ("", "", 0))
            if was:
                was_of, was_amount = was.of, was.amount
            return "done" if was_of == of and amount in (None, was_amount) else "ref_reused"
        if of in self.grants:
            return self._take_back(self.grants[of], ref, amount)
        if of in self.reversals:
            return self._restore(of, ref, amount, now_ms)
        return "unknown_ref"

    def _take_back(self, grant: ModelGrant, ref: str, amount: int | None) -> str:
        most = grant.amount - grant.reversed
        if not most:
            return "already_reversed"
        amount = most if amount is None else amount
        if amount > most:
            return "amount_too_large"
        left = min(grant.left, amount)
        expired = min(grant.expired, amount - left)
        owed = amount - left - expired
        grant.left -= left
        grant.expired -= expired
        grant.reversed += amount
        self.expired -= expired
        self.issued -= amount
        self.debts[grant.user] = self.debt(grant.user) + owed
        self.reversals[ref] = Reversal(grant.user, grant.ref, amount, expired)
        postings = {
            f"grant:{grant.ref}": -left,
            "cell:expired": -expired,
            f"debt:{grant.user}": -owed,
            "cell:issued": amount,
        }
        self._post(EntryType.REVERSAL, grant.user, ref, grant.ref, postings)
        return "done"

    def _restore(self, of: str, ref: str, amount: int | None, now_ms: float) -> str:
        reversal = self.reversals[of]
        if reversal.restored:
            return "already_reversed"
        if amount not in (None, reversal.amount):
            return "amount_too_large"
        reversal.restored = True
        grant = self.grants[reversal.of]
        grant.reversed -= reversal.amount
        grant.expired += reversal.expired
        self.expired += reversal.expired
        self.issued += reversal.amount
        self.others[ref] = reversal.user, of, reversal.amount
        postings = {
            "cell:issued": -reversal.amount,
            "cell:expired": reversal.expired,
            **self._receive(grant, reversal.amount - reversal.expired),
        }
        self._post(EntryType.RESTORATION, grant.user, ref, of, postings)
        self._expire(grant, now_ms)
        return "done"

    def expire(self, now_ms: float) -> None:
        """Book all that has expired, what did so first first."""
        ends = [grant for grant in self.grants.values() if grant.expires_ms is not None]
        for grant in sorted(ends, key=lambda grant: (grant.expires_ms, grant.ref)):
            self._expire(grant, now_ms)

    def _expire(self, grant: ModelGrant, now_ms: float) -> None:
        left = grant.left
        if grant.live(now_ms) or not left:
            return
        grant.left = 0
        grant.expired += left
        self.expired += left
        postings = {f"grant:{grant.ref}": -left, "cell:expired": left}
        self._post(EntryType.EXPIRY, grant.user, "", grant.ref, postings)
