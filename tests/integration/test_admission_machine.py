"""Admission, queue, fairness and credits on a real Redis against models in plain Python, whatever
is done.

Users, replicas and the operator do anything in any order, stale or repeated or two things at once,
while tiers change and the clock of Redis jumps. After each step everything Redis holds is what the
models say. ``REELSERVE_EXAMPLES`` searches further: so many examples, others each time, and a
failure is made as short as can be. Give it time, as with ``-o timeout=3600``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from deployments.redis_server import RedisServer
from tests.clock import Clock
from tests.machine.credits import Credits
from tests.machine.operation import Operation
from tests.machine.replicas import Replicas

EXAMPLES = int(os.environ.get("REELSERVE_EXAMPLES") or 0)
DEEDS = [
    *["submit"] * 5,
    *["submit_again", "remember", "cancel_or_delete", "cancel_or_delete", "ask_for_usage"],
    *["lease", "lease_and_write", "lease_and_write", "lease_and_write", "write", "write"],
    *["change_a_tier", "change_the_tiers", "tidy_up", "let_time_pass", "let_time_pass"],
    *["grant", "grant", "grant_again", "buy", "buy", "buy", "take", "reverse", "reverse", "verify"],
    *["two_at_once"] * 5,
]
"""What happens more often is there more often."""
AT_ONCE = (
    *("submit", "submit_again", "cancel_or_delete", "cancel_or_delete", "write", "write"),
    *("lease", "tidy_up", "grant", "grant_again", "buy", "buy", "take", "reverse"),
)


class Machine(Replicas, Operation, Credits):
    """Whatever anybody does to one pool."""

    @rule(data=st.data(), what=st.sampled_from(DEEDS))
    def act(self, data: st.DataObject, what: str) -> None:
        if what == "two_at_once":
            two = [data.draw(st.sampled_from(AT_ONCE)) for _ in range(2)]
            steps = [step for each in two for step in getattr(self, each)(data.draw)[:1]]
        else:
            steps = getattr(self, what)(data.draw)
        if steps:
            self.do(*steps)


@pytest.fixture
def machine(
    moved_redis_server: tuple[RedisServer, Clock],
) -> Iterator[type[Machine]]:
    server, clock = moved_redis_server
    yield type("QueueMachine", (Machine,), {"server": server, "clock": clock})
    clock.set(0)


def test_whatever_is_done_redis_holds_what_the_model_says(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            # To make a failure shorter takes many minutes: only whoever searches has them.
            phases=tuple(Phases) if EXAMPLES else (Phases.generate,),
            max_examples=EXAMPLES or 60,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
