"""Who goes first: one pure function, used by the queue, the engine, preemption and the simulator.

``serving/jobs/lua/_rank.lua`` says the same in Lua; a test holds the two equal to the last bit,
so both compute in doubles and in the same order. The clock is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

SLO_FACTOR = 3.0
"""A job is on time when it is done within this many times its solo time after submission."""

SLACK_WEIGHT = 0.2
"""What a millisecond counts for that a job could still wait, in milliseconds of remaining work."""

LATE_FACTOR = 3.0
"""How much more the work of a job counts that cannot be on time any more: others still can."""

LATE_UNTIL = 4.0
"""After so many times its solo time since submission a late job has stood back long enough."""

AGING = 1 / 128
"""What a millisecond counts for that it waits beyond that, in milliseconds of remaining work."""

PREEMPTIONS_MAX = 2
"""How often one job may be preempted: then it stays until it ends."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A job that wants the device, waiting or resident.

    ``total_ms`` is the device time of the whole job alone on a replica, ``remaining_ms`` what is
    left of it. ``created_ms`` is by the same clock as ``now_ms`` below. ``seat`` is where its
    class puts it: 0 for burst, 1 for standard, 2 for relaxed. A job that is leased because its
    class is owed device time (:mod:`serving.plan.fair`) has seat -1 until it ends, or what it was
    given would be taken away again.
    """

    created_ms: float
    total_ms: float
    remaining_ms: float
    seat: int = 0

    @property
    def deadline_ms(self) -> float:
        """When it should be done."""
        return self.created_ms + SLO_FACTOR * self.total_ms

    @property
    def latest_start_ms(self) -> float:
        """The last moment from which the deadline can be kept."""
        return self.deadline_ms - self.remaining_ms


def rank(job: Contender, now_ms: float) -> tuple[int, float]:
    """Whoever has the least goes first: the seat decides, then the urgency."""
    return job.seat, urgency(job, now_ms)


def urgency(job: Contender, now_ms: float) -> float:
    """Among equals, whoever has the least goes first. Least remaining work, with three corrections:

    * While a job can be on time, its slack counts a little: of two that are alike, the older.
    * One that cannot be on time any more counts :data:`LATE_FACTOR` times its work, so that its
      lateness does not spread to those who follow.
    * That ends when it has waited :data:`LATE_UNTIL` times its solo time, and from then on its
      age counts: nobody who was submitted ``(LATE_UNTIL + 1 / AGING) * total_ms`` after a job or
      later goes before it, however many there are.

    docs/decisions/0013 has what else was tried, with figures.
    """
    if now_ms <= job.latest_start_ms:
        return job.remaining_ms + SLACK_WEIGHT * (job.latest_start_ms - now_ms)
    waited_ms = now_ms - (job.created_ms + LATE_UNTIL * job.total_ms)
    if waited_ms < 0:
        return LATE_FACTOR * job.remaining_ms
    return job.remaining_ms - AGING * waited_ms


@dataclass(frozen=True, slots=True)
class Order:
    """An order the queue keeps, as one sorted set; the least ``score`` goes first.

    A score does not change while a job waits.
    """

    name: str
    score: Callable[[Contender], float]


ORDERS = (
    Order("work", lambda job: job.remaining_ms),
    Order(
        "age",
        # Whole milliseconds: Redis is slow at writing fractions.
        lambda job: math.floor(
            job.remaining_ms + AGING * (job.created_ms + LATE_UNTIL * job.total_ms)
        ),
    ),
)
"""The job that goes first is among the first few of one of these orders, and :func:`rank` says
which of them it is. So a lease looks at a handful of jobs however long the queue is."""


def worth_preempting(
    winner: Contender,
    victim: Contender,
    now_ms: float,
    *,
    free_ms: float,
    ran_ms: float,
    preemptions: int,
    quantum_ms: float,
    cost_ms: float,
) -> bool:
    """Whether ``winner``, which waits, should take the place of ``victim``, which has one.

    ``free_ms`` is how long until a place comes free by itself (the victim's ``remaining_ms`` if
    nobody knows better), ``ran_ms`` how long the victim has had its place, ``preemptions`` how
    often it lost one before, ``cost_ms`` what its checkpoint and its resumption take.

    A higher class is worth it if the winner would otherwise wait longer than the switch takes.
    Among equals only a deadline that is kept by it, and not paid for with the victim's, is; and
    only when what the winner gains exceeds what the victim and the device lose.
    """
    if preemptions >= PREEMPTIONS_MAX or ran_ms < quantum_ms:
        return False
    if winner.seat < victim.seat:
        return free_ms > cost_ms
    if not rank(winner, now_ms) < rank(victim, now_ms):
        return False
    saved = now_ms + cost_ms <= winner.latest_start_ms < now_ms + free_ms
    delay_ms = winner.remaining_ms + cost_ms
    lost = now_ms <= victim.latest_start_ms < now_ms + delay_ms
    return saved and not lost and free_ms > delay_ms
