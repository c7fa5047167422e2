"""What users do: submit, once or again, remember, cancel, delete, ask where they stand."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from quota.tiers import Tier
from serving.jobs import Limits, State, Wish
from serving.plan.classes import ServiceTier
from serving.plan.errors import IdempotencyMismatch, NotFound, RateLimited, Refused
from tests.jobs import spec
from tests.machine.comparison import POOL, USERS
from tests.machine.world import SURGE_MS, Draw, Step, World
from tests.queue_model import QueueModel, Submission

SIZES_MS = (1000, 60_000, 700_001, 3_600_000)
SERVICE_TIERS = st.sampled_from([*ServiceTier, ServiceTier.AUTO, ServiceTier.AUTO])
PRICES = st.sampled_from([0, 3, 5, 8])
MAX_CREDITS = st.sampled_from([None, None, 4, 9])
REFUSALS = {"queue_full": "pool", "too_many_queued_jobs": "own"}


class Users(World):
    def submitting(self, new: Submission) -> Step:
        async def real() -> tuple[str, str | None]:
            name, tier = self.model.tiers.of(self.model.tier_names.get(new.user))
            wish = Wish(
                service_tier=new.service_tier,
                max_credits=new.max_credits,
                body_sha256=new.body,
                idempotency_key=new.key,
                retried=new.retried,
            )
            try:
                admission = await self.queue.submit(
                    new.job_id,
                    user=new.user,
                    alias="sora-2",
                    spec=spec(),
                    est_device_ms=new.est_ms,
                    price=new.price,
                    limits=_limits(name, tier, self.model),
                    wish=wish,
                )
            except RateLimited:
                return "rate", None
            except Refused as refused:
                return REFUSALS.get(refused.code, refused.reason), None
            except IdempotencyMismatch:
                return "mismatch", None
            known = admission.job.id if admission.job else None
            return "replayed" if admission.replayed else "accepted", known

        return Step(real, lambda model, _: model.submit(new))

    def new_submission(self, *asked: Any) -> Step:
        new = Submission(next(self.ids), *asked)
        self.submissions.append(new)
        return self.submitting(new)

    def submit(self, draw: Draw) -> list[Step]:
        asked = (
            draw(st.sampled_from(USERS)),
            draw(st.sampled_from(SIZES_MS)),
            draw(SERVICE_TIERS),
            draw(st.sampled_from(["b1", "b2", "b3"])),
            draw(st.sampled_from([None, None, None, "k1", "k2"])),
            draw(st.booleans()),
            draw(PRICES),
            draw(MAX_CREDITS),
        )
        twice = draw(st.sampled_from([False, False, False, True]))
        return [self.new_submission(*asked) for _ in range(2 if twice else 1)]

    def buy(self, draw: Draw) -> list[Step]:
        """Most often by somebody who has credits."""
        now_ms, ledger = self.model.now_ms, self.model.ledger
        rich = [user for user in USERS if ledger.spendable(user, now_ms)]
        user, price = (
            draw(st.sampled_from([*rich, *rich, *USERS])),
            draw(st.sampled_from([3, 5, 8])),
        )
        asked = user, 60_000, ServiceTier.PRIORITY, draw(st.sampled_from(["b1", "b2", "b3"]))
        twice = draw(st.booleans())
        return [self.new_submission(*asked, None, False, price) for _ in range(2 if twice else 1)]

    def submit_again(self, draw: Draw) -> list[Step]:
        """An ingress that got no answer repeats its call, perhaps late."""
        if not self.submissions:
            return []
        return [self.submitting(draw(st.sampled_from(self.submissions[-8:])))]

    def remember(self, draw: Draw) -> list[Step]:
        user, key = draw(st.sampled_from(USERS)), draw(st.sampled_from(["k1", "k2"]))
        response = draw(st.text("xy"))
        return [
            Step(
                lambda: self.queue.remember(user, key, response),
                lambda model, _: model.remember(user, key, response),
            )
        ]

    def cancelling(self, job_id: str, user: str) -> Step:
        async def real() -> State | None:
            try:
                return (await self.queue.cancel(job_id, user=user)).state
            except NotFound:
                return None

        return Step(real, lambda model, _: model.cancel(job_id, user))

    def deleting(self, job_id: str, user: str) -> Step:
        async def real() -> bool:
            try:
                await self.queue.delete(job_id, user=user)
            except NotFound:
                return False
            return True

        return Step(real, lambda model, _: model.delete(job_id, user))

    def cancel_or_delete(self, draw: Draw) -> list[Step]:
        if not self.submissions:
            return []
        asked = draw(st.sampled_from(self.submissions[-12:]))
        user = draw(st.sampled_from([asked.user] * 4 + ["eve"]))
        how = self.cancelling if draw(st.booleans()) else self.deleting
        return [how(asked.job_id, user)]

    def ask_for_usage(self, draw: Draw) -> list[Step]:
        user = draw(st.sampled_from(USERS))

        async def real() -> tuple[int, int, int, int, bool]:
            name, tier = self.model.tiers.of(self.model.tier_names.get(user))
            usage = await self.queue.usage(
                user, _limits(name, tier, self.model, daily=True), [(POOL, SURGE_MS)]
            )
            used = usage.allowance.generations_used, usage.allowance.gpu_ms_used
            return *used, usage.running, usage.queued, usage.surge[POOL]

        def expected(model: QueueModel, _: Any) -> tuple[int, int, int, int, bool]:
            mine = model.of(user)
            running, queued = sum(job.runs for job in mine), sum(job.waits for job in mine)
            return *model.used_now(user), running, queued, model.surges()

        return [Step(real, expected)]


def _limits(name: str, tier: Tier, model: QueueModel, *, daily: bool = False) -> Limits:
    """As an ingress has them. ``daily``: the day is asked for though nothing in it is limited."""
    gpu_s, surge = tier.gpu_seconds_per_day, tier.surge
    limited = daily or tier.generations_per_day is not None or gpu_s is not None
    before = [each for each in model.midnights_ms if each <= model.now_ms]
    return Limits(
        tier=name,
        inside=tier.service_class,
        beyond=tier.beyond,
        generations=tier.generations_per_day,
        gpu_ms=None if gpu_s is None else round(1000 * gpu_s),
        queued_jobs=tier.queued_jobs,
        requests_per_minute=tier.requests_per_minute,
        # Two before and two after, as an ingress gives them.
        days_ms=model.midnights_ms[len(before) - 2 : len(before) + 2] if limited else (),
        surge_generations=surge.generations_per_day if surge else None,
        surge_inside=surge.service_class if surge else None,
        surge_ms=SURGE_MS,
    )
