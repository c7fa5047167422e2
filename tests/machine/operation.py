"""What the operator and time do: tiers change, somebody tidies up, the clock goes or is set."""

from __future__ import annotations

from hypothesis import strategies as st

from serving.jobs import Leases, Phase
from tests.machine.comparison import POOL, USERS
from tests.machine.world import BOUNDS, HOUR_MS, LEASE_MS, NUMBERS, Draw, Step, World, tiers
from tests.queue_model import ModelJob, QueueModel
from tests.queue_state import read_state

TIERS = ("free", "brief", "pro", "paid", "no such tier")
STEP_MS, STEPS = 2900, 25
"""Somebody speaks so often that no lease is prolonged; so many steps are longer than a lease."""
HOURS = (0, 0, -1, -0.777, 0.617, 1.103, 5.21, 24.07)
"""Of which no sum is how long anything is kept."""


class Operation(World):
    def change_a_tier(self, draw: Draw) -> list[Step]:
        user, name = draw(st.sampled_from(USERS)), draw(st.sampled_from(TIERS))
        return [
            Step(lambda: self.set_tier(user, name), lambda model, _: model.set_tier(user, name))
        ]

    def change_the_tiers(self, draw: Draw) -> list[Step]:
        numbers = draw(NUMBERS)
        return [
            Step(
                lambda: self.queue.apply_tiers(tiers(numbers)),
                lambda model, _: model.apply_tiers(tiers(numbers), set(USERS)),
            )
        ]

    def tidying(self) -> Step:
        async def real() -> None:
            await self.upkeep.tidy()

        return Step(real, lambda model, _: model.tidy())

    def tidy_up(self, draw: Draw) -> list[Step]:
        return [self.tidying()]

    def let_time_pass(self, draw: Draw) -> list[Step]:
        """The clock is set, or it takes its time."""
        if hours := draw(st.sampled_from(HOURS)):
            self.set_the_clock(hours)
        else:
            self.let_leases_run_out(draw(st.booleans()))
        return []

    def set_the_clock(self, hours: float) -> None:
        """Right after somebody spoke; and then somebody does again."""

        async def real() -> None:
            await self.speak()
            self.clock.jump(3600 * hours)
            await self.speak()

        self.do(Step(real, lambda model, _: model.set_clock(hours * HOUR_MS)))

    def let_leases_run_out(self, still_here: bool) -> None:
        """Time passes while somebody speaks. One replica, at most, still holds on."""
        kept = self.model.running()[:1] if still_here else []

        async def real() -> float:
            await self.speak()
            for _ in range(STEPS):
                self.clock.jump(STEP_MS / 1000)
                await self.speak()
                for job in kept:
                    await self._hold_on(job)
            return (await read_state(self.redis)).now_ms

        def expected(model: QueueModel, now_ms: float) -> float:
            passed_ms = now_ms - model.now_ms
            # A clock that is ahead of Redis's runs slower until they agree.
            least_ms = STEPS * STEP_MS * (0.89 if model.behind_ms else 1)
            assert least_ms <= passed_ms + 1
            model.behind_ms -= min(model.behind_ms, max(0, STEPS * STEP_MS - passed_ms))
            model.now_ms = now_ms
            for job in kept:
                model.heartbeat(job.id, job.fence, job.spent_ms, LEASE_MS, step=1)
            return now_ms

        self.do(Step(real, expected))
        self.do(self.tidying())

    async def _hold_on(self, job: ModelJob) -> None:
        run = next(run for run in self.runs if run.fence == job.fence)
        await Leases(self.cell, POOL, run.replica, BOUNDS).heartbeat(
            run,
            lease_ms=LEASE_MS,
            phase=Phase.DENOISE,
            step=1,
            remaining_ms=1,
            spent_ms=job.spent_ms - run.spent_ms,
        )
