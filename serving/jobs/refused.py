"""Why a submission is refused: what the script says, as an error with a plain message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.jobs.admission import Allowance, Limits, Wish
from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.errors import (
    InsufficientCredits,
    InsufficientQuota,
    QueueFull,
    RateLimited,
    Refused,
    TooManyQueued,
    TooManyStreams,
)
from serving.plan.price import MILLI

_SHORT = {
    "generations": "Today's {generations} generations of the tier '{tier}' are used up.",
    "gpu": "Today's {gpu_s} GPU-seconds of the tier '{tier}' do not suffice for this.",
    "priority": "service_tier 'priority' is not part of the tier '{tier}'. Ask for 'auto', or for "
    "another tier.",
}

_FUNDS = {
    "credits": "This costs {price} credits, and you have {balance}.",
    "max_credits": "This costs {price} credits, which is more than your max_credits, {most}.",
    "debt": "You owe {debt} credits, of payments that were taken back. They have to be paid first.",
}


@dataclass(frozen=True)
class Asked:
    """What was asked of a pool, for a ``price`` in milli-credits. ``queue_max``: how many may be
    there, or of what is streamed, how many of one user."""

    pool: str
    limits: Limits
    wish: Wish
    price: int
    queue_max: int


def refusal(reason: str, answer: Sequence[str], asked: Asked) -> Refused:
    """From what ``submit.lua`` answers behind the reason."""
    now, wait, *funds = answer
    allowance, wait_ms = Allowance.of(asked.limits, now), int(wait)
    if reason in _FUNDS:
        return _too_dear(reason, asked, allowance, wait_ms, *map(int, funds))
    return _too_much(reason, asked, allowance, wait_ms)


def _too_much(reason: str, asked: Asked, allowance: Allowance, wait_ms: int) -> Refused:
    limits = asked.limits
    wait_s = wait_ms / 1000 if wait_ms >= 0 else None
    match reason:
        case "rate":
            return RateLimited(
                f"{limits.requests_per_minute} submissions a minute are allowed in the tier "
                f"'{limits.tier}'. Try again in {max(1, round(wait_s or 0))} s.",
                retry_after_s=wait_s,
                allowance=allowance,
            )
        case "pool":
            return QueueFull(
                f"As many jobs already wait for '{asked.pool}' as may ({asked.queue_max}, "
                "the last tenth for burst, another for standard). Try again in a minute.",
                allowance=allowance,
            )
        case "own":
            return TooManyQueued(
                f"{limits.queued_jobs} of your jobs already wait, which is the limit of the "
                f"tier '{limits.tier}'. Wait for one of them to begin, or cancel one.",
                allowance=allowance,
            )
        case "streams":
            return TooManyStreams(
                f"You listen to {asked.queue_max} clips while they are made, which is the limit. "
                "Try again when one of them has ended.",
                allowance=allowance,
            )
    return InsufficientQuota(
        _SHORT[reason].format(
            tier=limits.tier,
            generations=allowance.generations,
            gpu_s=(limits.gpu_ms or 0) // 1000,
        ),
        reason=reason,
        retry_after_s=wait_s,
        allowance=allowance,
    )


def _too_dear(
    reason: str, asked: Asked, allowance: Allowance, wait_ms: int, balance: int, debt: int
) -> InsufficientCredits:
    amounts = {
        "price": asked.price,
        "balance": balance,
        "most": asked.wish.max_credits or 0,
        "debt": debt,
    }
    told = {name: f"{amount / MILLI:.12g}" for name, amount in amounts.items()}
    # A new day's allowance has a burst class only in some tiers.
    priority = asked.wish.service_tier is ServiceTier.PRIORITY
    helps = wait_ms >= 0 and (not priority or asked.limits.inside is ServiceClass.BURST)
    return InsufficientCredits(
        _FUNDS[reason].format(**told),
        reason=reason,
        retry_after_s=wait_ms / 1000 if helps else None,
        allowance=allowance,
        price=asked.price,
        balance=balance,
    )
