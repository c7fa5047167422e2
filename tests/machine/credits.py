"""What becomes of credits beside what jobs do with them: they are given, taken, taken back and
given back; anything of it twice, late, or under a name that stands for something else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hypothesis import strategies as st

from quota.ledger import Kind
from serving.plan.errors import LedgerRefused
from tests.ledger_model import GrantAsked
from tests.machine.comparison import USERS
from tests.machine.world import HOUR_MS, Draw, Step, World
from tests.queue_model import QueueModel

AMOUNTS = st.integers(1, 20)
HOURS_LEFT = st.sampled_from([None, 0.31, 0.31, 2.83, 25.9])
"""Until a grant expires; no sum of jumps of the clock either."""
PRIORITIES = st.sampled_from([None, None, 7])


class Credits(World):
    def booking(
        self, real: Callable[[], Awaitable[str]], model: Callable[[QueueModel], str]
    ) -> Step:
        async def outcome() -> str:
            try:
                await real()
            except LedgerRefused as refused:
                return refused.code
            return "done"

        return Step(outcome, lambda now, _: model(now))

    def granting(self, asked: GrantAsked) -> Step:
        return self.booking(
            lambda: self.ledger.grant(
                asked.user,
                ref=asked.ref,
                amount=asked.amount,
                kind=asked.kind,
                priority=asked.priority,
                expires_ms=asked.expires_ms,
                reason="r",
            ),
            lambda model: model.ledger.grant(asked, model.now_ms),
        )

    def grant(self, draw: Draw) -> list[Step]:
        hours = draw(HOURS_LEFT)
        asked = GrantAsked(
            draw(st.sampled_from(USERS)),
            next(self.refs),
            draw(AMOUNTS),
            draw(st.sampled_from(Kind)),
            draw(PRIORITIES),
            None if hours is None else int(self.model.now_ms + hours * HOUR_MS),
        )
        self.grants.append(asked)
        return [self.granting(asked)] * (2 if draw(st.booleans()) else 1)

    def grant_again(self, draw: Draw) -> list[Step]:
        """Whoever got no answer; or somebody else, who used the ref of something."""
        if not self.grants:
            return []
        asked = draw(st.sampled_from(self.grants[-5:]))
        ref = draw(st.sampled_from([asked.ref, asked.ref, self._any_ref(draw)]))
        amount = draw(st.sampled_from([asked.amount, asked.amount, asked.amount + 1]))
        user = draw(st.sampled_from([asked.user, asked.user, "ann"]))
        again = GrantAsked(user, ref, amount, asked.kind, asked.priority, asked.expires_ms)
        return [self.granting(again)]

    def take(self, draw: Draw) -> list[Step]:
        user, amount = draw(st.sampled_from(USERS)), draw(AMOUNTS)
        ref = draw(st.sampled_from([next(self.refs), self._any_ref(draw)]))
        step = self.booking(
            lambda: self.ledger.take(user, ref=ref, amount=amount, reason="r"),
            lambda model: model.ledger.take(user, ref, amount, model.now_ms),
        )
        return [step] * (2 if draw(st.booleans()) else 1)

    def reversing(self, of: str, ref: str, amount: int | None) -> Step:
        return self.booking(
            lambda: self.ledger.reverse(of, ref=ref, amount=amount, reason="r"),
            lambda model: model.ledger.reverse(of, ref, amount, model.now_ms),
        )

    def reverse(self, draw: Draw) -> list[Step]:
        """A refund or a chargeback of a grant, or the end of one."""
        of = self._any_ref(draw)
        ref = draw(st.sampled_from([next(self.refs), next(self.refs), *self.reversals[-2:]]))
        step = self.reversing(of, ref, draw(st.sampled_from([None, None, 2, 5])))
        if ref not in self.reversals:
            self.reversals.append(ref)
        return [step] * (2 if draw(st.booleans()) else 1)

    def _any_ref(self, draw: Draw) -> str:
        holds = list(self.model.ledger.holds.values())[-3:]
        known = [asked.ref for asked in self.grants[-2:]]
        known += [ref for hold in holds for ref, _ in hold.parts]  # of which something was used
        ref: str = draw(st.sampled_from([*known, *self.reversals[-3:], "nothing"]))
        return ref

    def verify(self, draw: Draw) -> list[Step]:
        self.run(self.books_verify())
        return []
