"""Sharing devices among pools: what the targets together take is never more than there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from autoscale.values import Budget, Pool

STICKY = 1.5
"""A replica that is there is not given up for work that is only a little more urgent: the other
would have to start first."""
PRICE_MIN = 1e-6
IDLE_LOAD = 0.5
"""A pool without replicas counts as half a one, so that none is infinitely late."""
EPSILON = 1e-9


class Rank(IntEnum):
    """What a replica is for. The higher goes first, whatever its work is worth."""

    KEPT = 0
    BUFFER = 1
    NEED = 2
    FLOOR = 3


@dataclass(frozen=True)
class Ask:
    """``replicas`` that a pool would have, were it alone: at least ``floor``, ``need`` of them for
    its work, those beyond ``wanted`` only because they are there. It has ``before``."""

    pool: Pool
    replicas: int
    floor: int
    need: int
    wanted: int
    before: int
    load: float


def share(asks: Sequence[Ask], budget: Budget, taken: Budget) -> Mapping[str, int]:
    """Replicas by pool, one after another to whoever is latest with the dearest work.

    A pool of load ``l`` with ``n`` replicas is ``l / n`` times as late as it may be. ``taken`` is
    in use by pools that are not to be changed.
    """
    if _fits(asks, budget, taken):
        return {ask.pool.name: ask.replicas for ask in asks}
    left_gpus = _left(budget.gpus, taken.gpus)
    left_cpus = _left(budget.cpus, taken.cpus)
    given = {ask.pool.name: 0 for ask in asks}
    open_asks = [ask for ask in asks if ask.replicas > 0]
    while open_asks:
        # Names decide among equals, so that equal inputs give equal targets.
        first = max(open_asks, key=lambda ask: (*_claim(ask, given[ask.pool.name]), ask.pool.name))
        name = first.pool.name
        fits = first.pool.gpus <= left_gpus + EPSILON and first.pool.cpus <= left_cpus + EPSILON
        if fits:
            given[name] += 1
            left_gpus -= first.pool.gpus
            left_cpus -= first.pool.cpus
        if not fits or given[name] == first.replicas:
            open_asks.remove(first)
    return given


def _fits(asks: Sequence[Ask], budget: Budget, taken: Budget) -> bool:
    gpus = sum(ask.replicas * ask.pool.gpus for ask in asks)
    cpus = sum(ask.replicas * ask.pool.cpus for ask in asks)
    return (
        gpus <= _left(budget.gpus, taken.gpus) + EPSILON
        and cpus <= _left(budget.cpus, taken.cpus) + EPSILON
    )


def _left(bound: float | None, taken: float | None) -> float:
    return float("inf") if bound is None else bound - (taken or 0.0)


def _claim(ask: Ask, n: int) -> tuple[Rank, float]:
    """How strong the claim to one more than ``n`` replicas is."""
    if n < ask.floor:
        rank = Rank.FLOOR
    elif n < ask.need:
        rank = Rank.NEED
    elif n < ask.wanted:
        rank = Rank.BUFFER
    else:
        rank = Rank.KEPT
    lateness = ask.load / max(n, IDLE_LOAD)
    worth = lateness * max(ask.pool.price, PRICE_MIN)
    return rank, worth * (STICKY if n < ask.before else 1.0)
