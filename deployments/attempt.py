"""What one attempt at a job tells of itself: its spans, and the ids in its log lines."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from enum import StrEnum
from types import TracebackType
from typing import Self

from serving import context
from serving.jobs import Lease
from serving.tracing import NO_SPAN, Attributes, Tracer

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    YIELDED = "yielded"
    PREEMPTED = "preempted"
    """Yielded as well, for a job that goes first."""
    STALE = "stale"
    """The job was no longer this attempt's: cancelled, expired, or leased to another."""
    ABANDONED = "abandoned"
    """This process gave up on it, and its lease runs out."""


class Attempt:
    """Use as a context manager around the whole attempt, and say how it ``ended``.

    The spans go under that of the job's submission: ``queue``, by Redis's clock, until the lease;
    ``lease``, until the end; and in this its stages, one after another.
    """

    def __init__(self, lease: Lease, tracer: Tracer, step: int) -> None:
        self._job = job = lease.job
        self._tracer = tracer
        self._step = step
        self._drained_at: int | None = None
        self._leased_ms = job.created_ms + lease.waited_ms
        self._began = time.monotonic()
        self._span = self._stage = NO_SPAN
        self._exit = ExitStack()
        self._outcome, self._error = Outcome.ABANDONED, ""

    def __enter__(self) -> Self:
        job = self._job
        described: Attributes = {
            "job_id": job.id,
            "model": job.pool,
            "class": job.service_class,
            "attempt": job.attempts,
            "fence": job.fence,
        }
        queue = self._tracer.under(job.traceparent, "queue", described, at_ms=job.queued_ms)
        queue.end(at_ms=self._leased_ms)
        self._span = self._tracer.under(job.traceparent, "lease", described)
        self._span.set({"from_step": self._step})
        ids: context.Ids = {"job_id": job.id, "attempt": job.attempts, "fence": job.fence}
        self._exit.enter_context(context.bound(**ids, **self._span.ids))
        log.info("leased after %d ms, at step %d", self._leased_ms - job.queued_ms, self._step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._outcome is Outcome.ABANDONED:
            self._error = "abandoned"
        self._stage.end(error=self._error)
        self._span.set({"outcome": self._outcome, "step": self._step})
        self._span.end(error=self._error)
        ran_s = time.monotonic() - self._began
        log.info("%s at step %d after %.3f s%s", self._outcome, self._step, ran_s, self._late)
        self._exit.close()

    def ended(self, outcome: Outcome, error: str = "") -> None:
        """``error``: its code. What comes last counts."""
        self._outcome, self._error = outcome, error

    def drains(self, step: int) -> None:
        """Its replica begins to drain, when it has made so many steps."""
        self._drained_at = step

    def got_to(self, step: int) -> None:
        """It has made so many steps."""
        self._step = step

    def begins(self, stage: str) -> None:
        """A stage begins, where the one before ends: the last is ``deliver``, to store what was
        made and to record it."""
        self._close_stage()
        self._stage = self._tracer.under(self._span, stage)

    @property
    def _late(self) -> str:
        if self._drained_at is None:
            return ""
        return f", {self._step - self._drained_at} of its steps made in the drain"

    def _close_stage(self, error: str = "") -> None:
        self._stage.end(error=error)
