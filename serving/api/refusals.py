"""A submission that was refused, in words: what ran out, when it comes back, what can be done."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from quota.days import zone_of
from serving.api.quota import Grant, left
from serving.jobs import Allowance, Limits
from serving.plan.classes import Offered, ServiceTier
from serving.plan.errors import (
    InsufficientCredits,
    InsufficientQuota,
    QueueFull,
    RateLimited,
    Refused,
    TooManyQueued,
    TooManyStreams,
)

ROOM_S = 30
"""When to ask again for a place in a queue: nobody knows when there is one."""


@dataclass(frozen=True)
class Asked:
    """A submission: whose, of which model, how much work it would have been, and how soon; and
    whether credits can be bought."""

    grant: Grant
    limits: Limits
    model: Offered
    est_device_ms: int
    service_tier: ServiceTier
    shop: bool


def explained(error: Refused, asked: Asked, now_ms: int) -> Refused:
    """The same refusal, in words for whoever asked, and with a time to come back at unless no wait
    helps."""
    allowance = error.allowance
    if not isinstance(allowance, Allowance):
        return error
    after_s = _retry_after_s(error, asked, allowance)
    quota = isinstance(error, InsufficientQuota)
    # The end of a day is known to the millisecond, whatever our clock says of the wait.
    then_ms = allowance.resets_ms if quota else now_ms + round(1000 * (after_s or 0))
    again = "" if after_s is None or then_ms is None else _when(asked.grant, now_ms, then_ms)
    what, when = _reason(error, asked, allowance)
    *ways, last = _ways(error, asked, allowance, waiting_helps=bool(again))
    do = f"{', '.join(ways)}, or {last}" if ways else last
    when = when.format(again=again) if again else "No wait changes that."
    return error.explained(f"{what} {when} {do[0].upper()}{do[1:]}.", after_s)


def _retry_after_s(error: Refused, asked: Asked, allowance: Allowance) -> float | None:
    if not isinstance(error, InsufficientQuota):
        return ROOM_S if error.retry_after_s is None else error.retry_after_s
    too_small = asked.limits.generations == 0 or (
        allowance.gpu_ms is not None and asked.est_device_ms > allowance.gpu_ms
    )
    return None if too_small else error.retry_after_s


def _reason(error: Refused, asked: Asked, allowance: Allowance) -> tuple[str, str]:
    """What ran out, and when it comes back, ``{again}``."""
    tier = f"the tier '{asked.grant.name}'"
    match error:
        case RateLimited():
            return (
                f"Too many submissions: {tier} allows {allowance.requests_per_minute} a minute.",
                "The next one is possible {again}.",
            )
        case QueueFull():
            return (
                f"As many jobs wait for '{asked.model.id}' as may.",
                "There is room when some of them have been made; try again {again}.",
            )
        case TooManyStreams():
            return (error.message.partition(". ")[0] + ".", "Try again {again}.")
        case TooManyQueued():
            return (
                f"Too many of your jobs wait: {tier} allows {asked.limits.queued_jobs}.",
                "There is room when one of them begins; try again {again}.",
            )
    if isinstance(error, InsufficientCredits):
        what = error.message
    elif error.reason == "gpu":
        what = _gpu_seconds(asked, allowance)
    else:
        what = _clips(asked, allowance)
    return what, "A new day begins {again}."


def _ways(
    error: Refused, asked: Asked, allowance: Allowance, *, waiting_helps: bool
) -> Iterator[str]:
    """What can be done."""
    if waiting_helps:
        yield "wait until then"
    if isinstance(error, QueueFull):
        yield "choose another model"
        return
    if isinstance(error, TooManyQueued):
        yield "cancel one of them"
    if error.reason == "gpu":
        yield "ask for a shorter or smaller clip"
    if error.reason == "generations" and _surges(asked, allowance):
        yield "try again when less waits for it"
    if error.reason == "max_credits":
        yield "give a larger max_credits"
    elif isinstance(error, InsufficientCredits):
        yield "buy credits" if asked.shop else "ask the operator for credits"
    if asked.service_tier is ServiceTier.PRIORITY and isinstance(error, InsufficientQuota):
        yield "submit with service_tier 'auto'"
    elif isinstance(error, InsufficientQuota) and asked.limits.beyond == "relaxed":
        yield "submit with service_tier 'flex' to have it made when there is room"
    yield "ask the operator for another tier"


def _surges(asked: Asked, allowance: Allowance) -> bool:
    """Whether a surge has made the allowance smaller."""
    return allowance.generations != asked.limits.generations


def _clips(asked: Asked, allowance: Allowance) -> str:
    why = f" while too much waits for '{asked.model.id}'" if _surges(asked, allowance) else ""
    plural = "" if allowance.generations == 1 else "s"
    return (
        f"Your allowance is used up: the tier '{asked.grant.name}' has {allowance.generations} "
        f"generation{plural} a day{why}, and you made {allowance.generations_used}."
    )


def _gpu_seconds(asked: Asked, allowance: Allowance) -> str:
    limit_ms = allowance.gpu_ms or 0
    return (
        f"Your allowance is too small: this clip takes about {_seconds(asked.est_device_ms)} "
        f"GPU-seconds, and of the {_seconds(limit_ms)} a day that the tier '{asked.grant.name}' "
        f"has, {_seconds(left(limit_ms, allowance.gpu_ms_used))} are left."
    )


def _seconds(ms: int) -> str:
    return f"{ms / 1000:,.0f}" if ms >= 10_000 else f"{ms / 1000:.1f}"


def _when(grant: Grant, now_ms: int, then_ms: int) -> str:
    """``at 14:03:20 UTC, in 12 s``; with the date where that is another day."""
    zone = zone_of(grant.tiers.time_zone)
    now = datetime.fromtimestamp(now_ms / 1000, zone)
    then = datetime.fromtimestamp(math.ceil(then_ms / 1000), zone)
    day = "" if now.date() == then.date() else f"on {then:%Y-%m-%d} "
    wait_s = (then_ms - now_ms) / 1000
    return f"{day}at {then:%H:%M:%S} {grant.tiers.time_zone}, in {span(wait_s)}"


def span(seconds: float) -> str:
    """``12 s``, ``6 min`` or ``7 h 3 min``, rounded up."""
    if seconds <= 119:
        return f"{max(1, math.ceil(seconds))} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
