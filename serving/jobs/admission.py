"""What a submission brings beside the clip, and what its user is told of the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.jobs.job import Job
from serving.plan.classes import ServiceClass, ServiceTier


@dataclass(frozen=True)
class Limits:
    """What a tier allows its user; None is no limit.

    ``generations`` and ``gpu_ms`` (device milliseconds, estimated at submission, then as spent) are
    a day's allowance; ``days_ms`` are midnights around now, in ms since the epoch, and needed for
    either. ``inside`` is the class within the allowance, ``beyond`` what follows: ``relaxed``,
    ``credits`` or ``refuse``. While the pool's backlog takes longer than ``surge_ms`` to drain,
    ``surge_generations`` and ``surge_inside`` go before ``generations`` and ``inside``.
    """

    tier: str = "unlimited"
    inside: ServiceClass = ServiceClass.STANDARD
    beyond: str = "relaxed"
    generations: int | None = None
    gpu_ms: int | None = None
    queued_jobs: int | None = None
    requests_per_minute: int | None = None
    days_ms: Sequence[int] = ()
    surge_generations: int | None = None
    surge_inside: ServiceClass | None = None
    surge_ms: int | None = None

    def __post_init__(self) -> None:
        by_day = (self.generations, self.gpu_ms, self.surge_generations)
        if not self.days_ms and any(limit is not None for limit in by_day):
            raise ValueError("a limit for a day needs days_ms")

    @property
    def days(self) -> str:
        """``days_ms`` as scripts take them."""
        return " ".join(map(str, self.days_ms))

    def arguments(self) -> tuple[str | int, ...]:
        """As ``submit.lua`` takes them."""
        values = (
            self.inside,
            self.beyond,
            self.generations,
            self.gpu_ms,
            self.queued_jobs,
            self.requests_per_minute,
            self.days,
            self.surge_generations,
            self.surge_inside,
            self.surge_ms,
        )
        return tuple("" if value is None else value for value in values)


@dataclass(frozen=True)
class Wish:
    """How the caller wants it.

    ``body_sha256`` identifies the request, in a form that is the same for equal requests. Under an
    ``idempotency_key`` it is made once in ``idempotency_s``; ``retried`` says that the client
    repeats it by itself, which within ``retry_window_s`` is no second request either.
    ``max_credits`` (milli-credits) says that beyond the allowance the clip may cost that much; a
    ``priority`` tier says that it may cost what it costs, or at most this.
    """

    service_tier: ServiceTier = ServiceTier.AUTO
    max_credits: int | None = None
    body_sha256: str = ""
    idempotency_key: str | None = None
    retried: bool = False
    idempotency_s: int = 24 * 3600
    retry_window_s: float = 30

    def arguments(self) -> tuple[str | int, ...]:
        """As ``submit.lua`` takes them, but for the credits."""
        return (
            self.service_tier,
            self.body_sha256,
            self.idempotency_key or "",
            1000 * self.idempotency_s,
            "1" if self.retried else "",
            round(1000 * self.retry_window_s),
        )


def may_pay(limits: Limits, wish: Wish) -> bool:
    """Whether the caller or the tier said that credits may pay beyond the allowance. They never do
    for what is to be made when there is room."""
    if wish.service_tier is ServiceTier.FLEX:
        return False
    priority = wish.service_tier is ServiceTier.PRIORITY
    return priority or limits.beyond == "credits" or wish.max_credits is not None


@dataclass(frozen=True)
class Allowance:
    """What a user has left, as of the answer. A limit of None is none.

    ``resets_ms`` is when the day ends (ms since the epoch), ``requests_reset_ms`` in how long as
    many submissions as there can be are there again. ``surge``: the pool's backlog exceeds its
    objective, so a tier's surge rules apply.
    """

    generations: int | None
    generations_used: int
    gpu_ms: int | None
    gpu_ms_used: int
    resets_ms: int | None
    requests_per_minute: int | None
    requests_left: int | None
    requests_reset_ms: int
    surge: bool

    @classmethod
    def of(cls, limits: Limits, now: str) -> Allowance:
        """From ``limits_told`` of ``_admission.lua``."""
        used, used_ms, ends, left, refill_ms, surge = map(int, now.split())
        generations = limits.generations
        if surge and limits.surge_generations is not None:
            generations = limits.surge_generations
        return cls(
            generations=generations,
            generations_used=used,
            gpu_ms=limits.gpu_ms,
            gpu_ms_used=used_ms,
            resets_ms=ends if ends >= 0 else None,
            requests_per_minute=limits.requests_per_minute,
            requests_left=left if left >= 0 else None,
            requests_reset_ms=refill_ms,
            surge=bool(surge),
        )


@dataclass(frozen=True)
class Admission:
    """A job that was accepted now, or, if ``replayed``, before; then ``response`` is what was
    answered to its first request, unless nobody got to remember that. ``job`` is None if it was
    deleted since."""

    job: Job | None
    allowance: Allowance
    replayed: bool = False
    response: str | None = None


@dataclass(frozen=True)
class Usage:
    """Where a user stands: ``running`` and ``queued`` jobs, and which pools surge."""

    allowance: Allowance
    running: int
    queued: int
    surge: dict[str, bool]
