"""What a tier means for a submission: its limits for the queue, and for the caller the headers of
the answer.

Plain values: the clock is passed in, and the counting is the queue's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from quota.tiers import Tier, Tiers
from serving.jobs import Allowance, Limits
from serving.plan.classes import Offered, ServiceClass


@dataclass(frozen=True)
class Grant:
    """The tier a caller has, as the file is now."""

    name: str
    tier: Tier
    tiers: Tiers

    @classmethod
    def of(cls, tier: str | None, tiers: Tiers) -> Self:
        """Of a caller whose tier is called ``tier``; None is the default one."""
        return cls(*tiers.of(tier), tiers)

    def limits(self, model: Offered | None, now_ms: int) -> Limits:
        """For the queue. Without a model, those that hold for every one."""
        tier, surge = self.tier, self.tier.surge
        by_day = (
            tier.generations_per_day,
            tier.gpu_seconds_per_day,
            surge and surge.generations_per_day,
        )
        return Limits(
            tier=self.name,
            inside=tier.service_class,
            beyond=tier.beyond,
            generations=tier.generations_per_day,
            gpu_ms=_ms(tier.gpu_seconds_per_day),
            queued_jobs=tier.queued_jobs,
            requests_per_minute=tier.requests_per_minute,
            days_ms=self.tiers.days_ms(now_ms) if any(n is not None for n in by_day) else (),
            surge_generations=surge.generations_per_day if surge else None,
            surge_inside=surge.service_class if surge else None,
            surge_ms=self.surge_ms(model) if model else None,
        )

    def surge_ms(self, model: Offered) -> int | None:
        """The drain time of a pool's backlog beyond which the tier's surge rules hold: what a job
        of the standard class may wait for its first step. None where there is no rule, or no such
        objective."""
        if self.tier.surge is None:
            return None
        return _ms(model.classes[ServiceClass.STANDARD].first_step_s)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def rate_headers(allowance: Allowance, now_ms: int) -> dict[str, str]:
    """``x-ratelimit-…`` as OpenAI names them, for submissions in a minute (``requests``) and clips
    in a day (``generations``); none for what has no limit."""
    headers: dict[str, str] = {}
    if allowance.requests_per_minute is not None:
        headers |= _bound(
            "requests",
            allowance.requests_per_minute,
            allowance.requests_left or 0,
            allowance.requests_reset_ms,
        )
    if allowance.generations is not None and allowance.resets_ms is not None:
        headers |= _bound(
            "generations",
            allowance.generations,
            left(allowance.generations, allowance.generations_used),
            allowance.resets_ms - now_ms,
        )
    return headers


def _bound(what: str, limit: int, remaining: int, reset_ms: int) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": duration(reset_ms),
    }


RATE_HEADERS = [
    f"x-ratelimit-{part}-{what}"
    for what in ("requests", "generations")
    for part in ("limit", "remaining", "reset")
]


def left(limit: int, used: int) -> int:
    """Of an allowance. A limit that was lowered, or surges, may lie below what is used."""
    return max(0, limit - used)


def duration(ms: int) -> str:
    """As OpenAI writes them: ``120ms``, ``1s``, ``6m0s``, ``7h3m20s``. Rounded up: whoever waits
    that long is not early."""
    if ms < 1000:
        return f"{max(0, ms)}ms"
    seconds = math.ceil(ms / 1000)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    named = {"h": hours, "m": minutes, "s": seconds % 60}
    biggest = next(index for index, count in enumerate(named.values()) if count)
    return "".join(f"{count}{unit}" for unit, count in list(named.items())[biggest:])
