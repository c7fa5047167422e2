"""When a run is saved on the way."""

from __future__ import annotations

import time
from collections.abc import Callable

from serving.engine.run import Run
from serving.plan.catalog import CheckpointPolicy


class SaveSchedule:
    """The catalog's policy, for all runs of one engine.

    Snapshots on schedule share a budget of bytes per second: after each, none is due until the
    budget has caught up. Those that must be made, of final latents and of runs that leave, are
    made whatever the budget says, and count.
    """

    def __init__(
        self, policy: CheckpointPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._affordable_at = 0.0

    def begins(self, run: Run, step: int) -> None:
        """The run is safe up to this step."""
        run.saved_at, run.saved_step = self._clock(), step

    def is_due(self, run: Run) -> bool:
        """Whether to save the run at this boundary."""
        state = run.state
        now = self._clock()
        if state is None or state.done or run.saving or now < self._affordable_at:
            return False
        every_steps = self._policy.every_steps
        if every_steps is not None and state.step - run.saved_step >= every_steps:
            return True
        return now - run.saved_at >= self._policy.every_s

    def saved(self, size_bytes: int) -> None:
        """A snapshot of so many bytes was made."""
        now = self._clock()
        start = max(now, self._affordable_at)
        self._affordable_at = start + size_bytes / self._policy.bytes_per_s
