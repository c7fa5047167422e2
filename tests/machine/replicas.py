"""What replicas do: lease, show progress, save, hand back and end, in time or too late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st

from serving.jobs import IDLE, Job, Leases, Phase, State
from serving.plan.errors import CheckpointCorrupt, ModelFailed, StaleLease
from tests.jobs import SHARES
from tests.machine.comparison import POOL
from tests.machine.users import Users
from tests.machine.world import BOUNDS, LEASE_MS, Draw, Step
from tests.queue_model import QueueModel

WHAT = st.sampled_from(
    ("heartbeat", "checkpoint", "refuse", "yield", "complete", "fail", "end twice", "end anyhow")
)
DONE = st.sampled_from([0, 0.25, 0.9, 1.5])
"""How much of its estimate a job has spent in this lease."""


class Replicas(Users):
    def leasing(self, replica: str) -> Step:
        at_ms: int | None = None

        async def real() -> str | None:
            nonlocal at_ms
            token = next(self.tokens)
            asked = (POOL, replica, LEASE_MS, token, BOUNDS.attempts_max, "{}")
            answer = await self.cell.run("lease", *asked, IDLE.to_json(1, SHARES))
            # The same call, since its answer might have been lost.
            again = await self.cell.run("lease", *asked, IDLE.to_json(1, SHARES))
            if not answer:
                return None
            at_ms, _, flat = answer
            job = Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))
            if again:
                assert again[2] == flat
            else:  # its owner was quick
                found = await self.queue.find(job.id)
                assert found is None or found.terminal
            self.runs.append(job)
            return job.id

        def expected(model: QueueModel, got: str | None) -> str | None:
            if got in model.jobs:
                model.jobs[got].created_ms = next(
                    job.created_ms for job in reversed(self.runs) if job.id == got
                )
            job = model.lease(LEASE_MS, at_ms)
            return job.id if job else None

        return Step(real, expected)

    def lease(self, draw: Draw) -> list[Step]:
        at_once = draw(st.sampled_from([False, False, True]))
        return [self.leasing(next(self.replicas)) for _ in range(2 if at_once else 1)]

    def writing(
        self, real: Callable[[], Awaitable[Any]], model: Callable[[QueueModel], bool]
    ) -> Step:
        """By a run, perhaps of a lease that is over."""

        async def whether() -> bool:
            try:
                await real()
            except StaleLease:
                return False
            return True

        return Step(whether, lambda now, _: model(now))

    def write(self, draw: Draw) -> list[Step]:
        """By one of the last runs, whether it still may or not."""
        if not self.runs:
            return []
        return self.as_written(draw(st.sampled_from(self.runs[-5:])), draw(WHAT), draw(DONE))

    def ending(self, job: Job, state: State, spent_ms: int = 0) -> Step:
        replica = Leases(self.cell, POOL, job.replica, BOUNDS)
        if state is State.COMPLETED:
            real = lambda: replica.complete(job, {}, spent_ms=spent_ms)  # noqa: E731
        else:
            real = lambda: replica.fail(job, ModelFailed("x"), spent_ms=spent_ms)  # noqa: E731
        asked = job.id, job.fence, state, job.spent_ms + spent_ms
        return self.writing(real, lambda model: model.finish(*asked))

    def as_written(self, job: Job, what: str, done: float) -> list[Step]:
        spent_ms = int(done * job.est_device_ms)
        total_ms = job.spent_ms + spent_ms
        left_ms = max(1, job.left_device_ms - spent_ms)
        replica = Leases(self.cell, POOL, job.replica, BOUNDS)
        me, step = (job.id, job.fence), int(4 * done)
        match what:
            case "heartbeat":
                progress: dict[str, Any] = {"phase": Phase.DENOISE, "step": 1}
                progress |= {"remaining_ms": left_ms, "spent_ms": spent_ms}
                return [
                    self.writing(
                        lambda: replica.heartbeat(job, lease_ms=LEASE_MS, **progress),
                        lambda model: model.heartbeat(*me, total_ms, LEASE_MS, step=1),
                    )
                ]
            case "checkpoint":
                return [
                    self.writing(
                        lambda: replica.checkpoint(job, f"{job.fence}/{step}", step, left_ms),
                        lambda model: model.checkpoint(*me, step, left_ms),
                    )
                ]
            case "refuse":
                return [
                    self.writing(
                        lambda: replica.refused(job, CheckpointCorrupt("x")),
                        lambda model: model.refuse_checkpoint(*me),
                    )
                ]
            case "yield":
                return [
                    self.writing(
                        lambda: replica.give_back(job, spent_ms=spent_ms, step=step),
                        lambda model: model.give_back(*me, total_ms, step),
                    )
                ]
            case "complete":
                return [self.ending(job, State.COMPLETED, spent_ms)]
            case "fail":
                failed = self.ending(job, State.FAILED, spent_ms)
                return [failed, self.cancelling(job.id, job.user)]
            case "end twice":
                return [self.ending(job, State.COMPLETED, spent_ms)] * 2
        completed = self.ending(job, State.COMPLETED, spent_ms)
        return [completed, self.deleting(job.id, job.user)]

    def lease_and_write(self, draw: Draw) -> list[Step]:
        """As replicas do."""
        self.do(self.leasing("r1"))
        whats = draw(st.lists(WHAT, min_size=1, max_size=3))[: len(self.runs)]
        for what in whats:
            self.everything_is_as_it_must_be()
            self.do(*self.as_written(self.runs[-1], what, draw(DONE)))
        return []
