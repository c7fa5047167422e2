"""Who is owed device time: classes by their shares, and inside a class tenants by what they got.

``serving/jobs/lua/_fair.lua`` says the same in Lua; a test holds the two equal. The unit is the
millisecond of leased device time, estimated when a lease is granted and corrected when it ends.

Inside a class this is the Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024) in device time over weight: a tenant's counter grows by what it is leased, one
that returns is lifted to those who waited, and the least goes first. Within one :func:`window`
of the least, urgency decides between tenants instead, for a while.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from serving.plan.classes import CLASSES, ServiceClass

CANDIDATES = 16
"""Tenants that a lease looks at: those with the lowest counters. With a million jobs waiting, they
are most of what a lease costs: the jobs of each lie elsewhere in memory."""

WINDOW_DECAY = 1 - 1 / 1024
"""What remains of the window with each lease, until a charge as large sets it again."""

PATIENCE = 4
"""So many windows of device time may go to others before it is the turn of the least."""

OWED_SEAT = -1
"""Of a job that is leased because its class is owed (:attr:`serving.plan.rank.Contender.seat`)."""

NEXT = 1 / 1024
"""How far one tenant is lifted above the one before: so they go in the order they came."""


def class_order(
    credits: Mapping[ServiceClass, float], waiting: Collection[ServiceClass]
) -> Sequence[ServiceClass]:
    """The waiting classes, who goes first at the front: those that are owed, then the others, both
    in the order of precedence."""
    ordered = [each for each in CLASSES if each in waiting]
    return sorted(ordered, key=lambda each: credits.get(each, 0.0) <= 0)


def after_lease(
    credits: Mapping[ServiceClass, float],
    waiting: Collection[ServiceClass],
    leased: ServiceClass,
    charge_ms: float,
    shares: Mapping[ServiceClass, float],
) -> dict[ServiceClass, float]:
    """Every class's credit once ``leased``, one of those ``waiting``, was leased ``charge_ms``.

    A class earns its share of all that is leased while it waits, and pays for what it is leased
    itself. It is owed while its credit is above 0, so it gets its share however much of another
    class there is. What it got beyond that is not held against it, and while nobody of it waits it
    earns nothing.
    """
    after = {}
    for each in CLASSES:
        credit = credits.get(each, 0.0)
        if each == leased:
            credit = max(credit, 0.0) - charge_ms
        elif each not in waiting:
            credit = min(credit, 0.0)
        if each in waiting:
            credit += shares[each] * charge_ms
        after[each] = credit
    return after


def lifted(
    counter: float | None, least: float | None, reached: float, last: float, width: float
) -> float:
    """The counter of a tenant whose jobs begin to wait: not below ``least``, that of those who
    wait; if nobody does, not below ``reached``, the highest that the least ever was.

    Within the window, of this ``width``, it is lifted above the ``last`` one that was: a lease
    looks at a few tenants only, and among equals their names would decide for ever.
    """
    floor = reached if least is None else least
    if floor <= last < floor + max(width, 1.0):
        floor = last + NEXT
    return floor if counter is None else max(counter, floor)


def woken(counter: float, least: float | None, reached: float, width: float) -> float:
    """The counter of a tenant that may be leased jobs again after it ran as many as it may. It
    waited all the while, so it goes first; but not with all that it could not have."""
    return max(counter, (reached if least is None else least) - width)


def corrected(counter: float, by: float, floor: float | None) -> float:
    """A counter once it is known that a lease took less, or more. What was charged before the
    tenant was lifted to ``floor`` is no longer in it, and cannot be given back."""
    return counter + by if floor is None else max(counter + by, min(counter, floor))


def window(before_ms: float, charge_ms: float, weight: float) -> float:
    """How far above the least counter a tenant may be and still go first, after another lease.

    It is the largest charge there was, so two tenants that both wait are never further apart than
    twice the largest charge. A weight below 1 does not widen it: that is between a tenant and
    its own jobs.
    """
    return max(before_ms * WINDOW_DECAY, charge_ms / max(weight, 1.0))


def passed_over(before_ms: float, charge_ms: float, weight: float, *, is_least: bool) -> float:
    """What went to others since the tenant with the least counter was leased something."""
    return 0.0 if is_least else before_ms + charge_ms / max(weight, 1.0)


def is_overdue(passed_ms: float, width: float) -> bool:
    """Whether that tenant goes first now, however urgent the others are: new ones come in beside it
    for ever, each with a shorter job."""
    return passed_ms > PATIENCE * width
