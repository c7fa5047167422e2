"""`reelserve loadtest spike`: quiet, then many jobs at once, then the wait until all of them ended.

An open loop: jobs are submitted at their times, whatever became of the earlier ones, and once. All
the while the number of replicas is looked at, so that the outcome says how the pool followed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.spike_server import SpikeServer, Unanswered
from loadtest.spike_summary import Look, Outcome, ready_before, summarise

LOOK_S = 1.0
TELL_S = 5.0
TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})
STEP_FACTORS = (0.5, 1.0, 2.0)
SIZES, DURATIONS = 3, 2
"""So many of a model's smallest sizes and shortest durations are mixed."""
SEED_MAX = 2**31
PROMPTS = ("a red ball moving right", "rain on a window", "a slow dawn over the sea")


@dataclass(frozen=True)
class Plan:
    """``jobs`` evenly over ``over_s``, after ``quiet_s``; ``timeout_s`` is for all of it.

    Without a ``model`` it is the server's first one; ``steps`` is the middle of those that are
    mixed, the model's default if None. With an ``admin_key`` the outcome says what the autoscaler
    wanted too.
    """

    url: str
    key: str
    admin_key: str | None = None
    model: str | None = None
    jobs: int = 40
    over_s: float = 10.0
    quiet_s: float = 5.0
    steps: int | None = None
    until_idle: bool = False
    timeout_s: float = 900.0


def run(plan: Plan, progress: Callable[[str], None]) -> dict[str, Any]:
    """What came of it. :class:`LoadTestError` when the stack is not there, or not of use."""
    return asyncio.run(_run(plan, progress))


async def _run(plan: Plan, progress: Callable[[str], None]) -> dict[str, Any]:
    async with SpikeServer(plan.url, plan.key, plan.admin_key) as server:
        try:
            model = await server.model(plan.model)
            before = await server.objectives(model["id"])
            spike = Spike(plan, server, model, progress)
            await spike.run()
        except Unanswered as error:
            raise LoadTestError(str(error)) from error
        if not spike.looks:
            raise LoadTestError("the server never said how the pool is doing")
        outcome = spike.outcome()
        try:
            outcome.objectives = _since(before, await server.objectives(model["id"]))
        except Unanswered as error:  # all else is known
            progress(f"objectives are not known: {error}")
    return {"model": model["id"], "jobs_planned": plan.jobs, **summarise(outcome)}


def jobs_of(model: Mapping[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """The requests: small clips of the model, no two alike, the same ones each time."""
    chance = random.Random(plan.jobs)  # noqa: S311
    sizes = sorted(model["sizes"], key=_area)[:SIZES]
    steps, least, most = plan.steps or model["steps"]["default"], *_range(model["steps"])
    return [
        {
            "model": model["id"],
            "prompt": chance.choice(PROMPTS),
            "seed": chance.randrange(SEED_MAX),
            "size": chance.choice(sizes),
            "seconds": str(chance.choice(sorted(model["seconds"])[:DURATIONS])),
            "steps": min(most, max(least, round(steps * chance.choice(STEP_FACTORS)))),
        }
        for _ in range(plan.jobs)
    ]


@dataclass
class Spike:
    """One spike under way. Times are seconds since it began, so those of the quiet are below 0."""

    plan: Plan
    server: SpikeServer
    model: Mapping[str, Any]
    progress: Callable[[str], None]
    looks: list[Look] = field(default_factory=list)
    submitted: dict[str, float] = field(default_factory=dict)
    ended: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    last_job_s: float | None = None
    timed_out: bool = False
    _began: float = 0.0
    _after: str | None = None
    _all_sent: bool = False
    _trouble: str = ""
    _told_s: float = float("-inf")

    async def run(self) -> None:
        self._after = await self.server.newest_video()
        self._began = asyncio.get_running_loop().time() + self.plan.quiet_s
        self.progress(f"quiet for {self.plan.quiet_s:g} s")
        async with asyncio.TaskGroup() as group:
            submitting = group.create_task(self._submit_all())
            while not self._is_over():
                await self._look()
                self._tell()
                await asyncio.sleep(LOOK_S)
            submitting.cancel()

    def outcome(self) -> Outcome:
        return Outcome(
            looks=self.looks,
            jobs=list(self.ended.values()),
            unfinished=len(self.submitted) - len(self.ended),
            refused=dict(self.refused),
            errors=dict(self.errors),
            last_job_s=self.last_job_s,
            floor=self._floor(),
            timed_out=self.timed_out,
            until_idle=self.plan.until_idle,
        )

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    def _is_over(self) -> bool:
        if self._now_s() > self.plan.timeout_s - self.plan.quiet_s:
            self.timed_out = True
            return True
        if not self._all_sent or len(self.ended) < len(self.submitted):
            return False
        if not self.plan.until_idle:
            return True
        return bool(self.looks) and self.looks[-1].ready <= self._floor()

    def _floor(self) -> int:
        """How many replicas there are when there is nothing to do: as the operator said, else as it
        was in the quiet."""
        return ready_before(self.looks) if self.server.floor is None else self.server.floor

    async def _submit_all(self) -> None:
        requests = jobs_of(self.model, self.plan)
        gap_s = self.plan.over_s / len(requests)
        async with asyncio.TaskGroup() as group:
            for index, fields in enumerate(requests):
                await asyncio.sleep(max(0.0, index * gap_s - self._now_s()))
                if index == 0:
                    self.progress(f"{len(requests)} jobs within {self.plan.over_s:g} s")
                group.create_task(self._submit(fields))
        self._all_sent = True

    async def _submit(self, fields: Mapping[str, Any]) -> None:
        try:
            answer = await self.server.submit(fields)
        except Unanswered as error:
            self.errors[str(error)] += 1
            return
        if answer.refused is not None:
            self.refused[answer.refused] += 1
        else:
            self.submitted[answer.video_id] = self._now_s()

    async def _look(self) -> None:
        """How the pool is doing, and which jobs have ended. What fails now succeeds a second later,
        or the jobs are unfinished in the end."""
        try:
            self.looks.append(await self.server.look(self.model["id"], self._now_s))
            if len(self.ended) < len(self.submitted):
                await self._see_ends()
            self._trouble = ""
        except Unanswered as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                self.progress(f"… {error}")

    async def _see_ends(self) -> None:
        at_front = self._all_sent
        async for page in self.server.videos(self._after):
            ended = [video for video in page if video["status"] in TERMINAL]
            for video in ended:
                if video["id"] in self.submitted and video["id"] not in self.ended:
                    self.ended[video["id"]] = video
                    self.last_job_s = self._now_s()
            # What has ended before all others need not be asked for again.
            at_front = at_front and len(ended) == len(page)
            if at_front:
                self._after = page[-1]["id"]

    def _tell(self) -> None:
        now_s = self._now_s()
        if now_s - self._told_s < TELL_S or now_s < 0 or not self.looks:
            return
        self._told_s = now_s
        look = self.looks[-1]
        self.progress(
            f"… {now_s:.0f} s: {len(self.ended)} of {len(self.submitted)} jobs ended, "
            f"{look.queued} wait, {look.ready} replicas ready"
        )


def _since(
    before: Mapping[str, Mapping[str, float]] | None,
    after: Mapping[str, Mapping[str, float]] | None,
) -> dict[str, dict[str, float]] | None:
    """What was counted meanwhile, by objective and outcome; None where it is not counted."""
    if after is None:
        return None
    return {
        objective: {
            outcome: count - (before or {}).get(objective, {}).get(outcome, 0)
            for outcome, count in outcomes.items()
        }
        for objective, outcomes in after.items()
    }


def _range(limits: Mapping[str, int]) -> Sequence[int]:
    return limits["min"], limits["max"]


def _area(size: str) -> int:
    width, _, height = size.partition("x")
    return int(width) * int(height)
