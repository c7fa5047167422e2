"""One replica on a virtual clock: what the policy chooses takes as long as was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.policies.work import Costs, Job


class Policy(Protocol):
    """Who goes next. The executor asks at every boundary; nothing happens between two."""

    def arrive(self, job: Job) -> None:
        """A job was submitted."""
        ...

    def choose(self, now_s: float) -> Sequence[Job]:
        """The jobs that take their next unit of work, together; nobody if all have to wait.

        Several may share a denoising step, if they are of one kind; each encodes its prompt alone.
        """
        ...

    def wake_s(self, now_s: float) -> float:
        """When to ask again, if :meth:`choose` named nobody and nobody arrives; may be never."""
        ...

    def advanced(self, jobs: Sequence[Job], now_s: float) -> Sequence[Job]:
        """They did their unit. The jobs whose clips are handed out now: perhaps some of them,
        perhaps more who had to wait for these."""
        ...


@dataclass(slots=True)
class Replica:
    """What a unit of work costs, and what was spent."""

    costs: Costs
    busy_s: float = 0.0

    def advance(self, jobs: Sequence[Job]) -> float:
        """One unit of work of these jobs; the seconds it took."""
        lead = jobs[0]
        if lead.begun:
            took = self.costs.shared_step_s(lead.kind, len(jobs))
            for job in jobs:
                job.step += 1
        else:
            took = self.costs.encode_s[lead.kind.name]
            lead.begun = True
        self.busy_s += took
        return took


def simulate(policy: Policy, replica: Replica, jobs: Sequence[Job]) -> float:
    """Run until every job was handed out; the time then. ``jobs`` are in order of arrival."""
    now, arrived, ended = 0.0, 0, 0
    while ended < len(jobs):
        while arrived < len(jobs) and jobs[arrived].created_s <= now:
            policy.arrive(jobs[arrived])
            arrived += 1
        if chosen := policy.choose(now):
            now += replica.advance(chosen)
            for job in policy.advanced(chosen, now):
                job.done_s = now
                ended += 1
        else:
            next_s = jobs[arrived].created_s if arrived < len(jobs) else math.inf
            now = min(next_s, policy.wake_s(now))
    return now
