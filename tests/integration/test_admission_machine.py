"""Admission, queue and fairness on a real Redis against a model in plain Python, whatever is done.

Users and replicas do anything in any order, stale or repeated or two things at once, while tiers
change and the clock of Redis jumps. After each step everything Redis holds is what the model says.
``REELSERVE_EXAMPLES`` searches further: so many examples, others each time, and a failure is made
as short as can be. Give it time, as with ``-o timeout=3600``.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.tiers import Surge, Tier, Tiers
from serving.jobs import (
    IDLE,
    Cell,
    Job,
    JobQueue,
    JobSettings,
    Leases,
    Limits,
    Phase,
    State,
    Upkeep,
    Wish,
)
from serving.plan.classes import CLASSES, ServiceClass, ServiceTier
from serving.plan.errors import (
    CheckpointCorrupt,
    IdempotencyMismatch,
    ModelFailed,
    NotFound,
    RateLimited,
    Refused,
    StaleLease,
)
from tests.clock import Clock
from tests.jobs import SHARES, spec
from tests.queue_model import Bounds, ModelJob, QueueModel, Submission
from tests.queue_state import QueueState, check, check_nothing_left, close, read_state

POOL = "demo-wan"
HOUR_MS = 3_600_000
LEASE_MS = 60_000
STEP_MS, STEPS = 2900, 25
"""Somebody speaks so often that no lease is prolonged; so many steps are longer than a lease."""
SLACK_MS = 10_000
"""A busy machine may take as long for a step; every jump of the clock is longer by far."""
HOURS = (0, 0, -1, -0.777, 0.617, 1.103, 5.21, 24.07)
"""Of which no sum is how long anything is kept."""
EXAMPLES = int(os.environ.get("REELSERVE_EXAMPLES", 0))
BOUNDS = JobSettings(queue_max=14, retention_s=30 * 3600, queue_ttl_s=26 * 3600)
SURGE_MS = 4_000_000
USERS = ("ann", "bob", "cleo", "dan")
SIZES_MS = (1000, 60_000, 700_001, 3_600_000)


def tiers(numbers: tuple[int, int, float]) -> Tiers:
    """Tiers of every kind, with these numbers."""
    daily, running, weight = numbers
    surge = Surge(generations_per_day=daily // 2, service_class=ServiceClass.RELAXED)
    return Tiers(
        default_tier="free",
        tiers={
            "free": Tier(generations_per_day=daily, running_jobs=running, surge=surge),
            "brief": Tier(requests_per_minute=2, queued_jobs=2, running_jobs=1, weight=weight),
            "pro": Tier(
                gpu_seconds_per_day=5000,
                beyond="refuse",
                weight=weight,
                service_class=ServiceClass.BURST,
                surge=Surge(service_class=ServiceClass.STANDARD),
            ),
            "paid": Tier(generations_per_day=daily + 1, beyond="credits", running_jobs=running),
            "unlimited": Tier(),
        },
    )


TIERS = ("free", "brief", "pro", "paid", "no such tier")
WHAT = st.sampled_from(
    ("heartbeat", "checkpoint", "refuse", "yield", "complete", "fail", "end twice")
)
SERVICE_TIERS = st.sampled_from([*ServiceTier, ServiceTier.AUTO, ServiceTier.AUTO])
DONE = st.sampled_from([0, 0.25, 0.9, 1.5])
"""How much of its estimate a job has spent in this lease."""
NUMBERS = st.sampled_from([(2, 1, 3.0), (4, 2, 0.7), (1, 3, 1.0)])


Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Step:
    """Something that is done, and what the model does. What either answers is the same."""

    real: Callable[[], Awaitable[Any]]
    model: Callable[[QueueModel, Any], Any]
    """Given the real answer too, from which it takes no more than times of day."""


DEEDS = [
    *["submit"] * 6,
    *["submit_again", "remember", "cancel_or_delete", "cancel_or_delete", "ask_for_usage"],
    *["lease", "lease_and_write", "lease_and_write", "lease_and_write", "write", "write"],
    *["change_a_tier", "change_the_tiers", "tidy_up", "let_time_pass", "let_time_pass"],
]
"""What happens more often is there more often."""


class Machine(RuleBasedStateMachine):
    """One pool, its users and its replicas."""

    server: RedisServer
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        self.clock.set(0)
        self.runner = asyncio.Runner()
        self.redis: Redis = Redis.from_url(self.server.url, decode_responses=True)
        self.cell = Cell(self.redis)
        self.queue, self.upkeep = JobQueue(self.cell, BOUNDS), Upkeep(self.cell, BOUNDS)
        self.speaker = Leases(self.cell, POOL, "r0", BOUNDS)
        self.ids = (f"video_{n}" for n in itertools.count())
        self.tokens = (f"token{n}" for n in itertools.count())
        self.submissions: list[Submission] = []
        self.runs: list[Job] = []
        self.state = QueueState()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(numbers=NUMBERS)
    def begin(self, numbers: tuple[int, int, float]) -> None:
        self.run(self._begin(numbers))

    async def _begin(self, numbers: tuple[int, int, float]) -> None:
        await self.redis.flushall()
        await self.cell.check_schema()
        await self.queue.apply_tiers(tiers(numbers))
        await self.speak()
        now_ms = (await read_state(self.redis)).now_ms
        noon = now_ms + 6 * HOUR_MS + HOUR_MS // 3
        self.model = QueueModel(
            Bounds(
                queue_max=BOUNDS.queue_max,
                attempts_max=BOUNDS.attempts_max,
                queue_ttl_ms=1000 * BOUNDS.queue_ttl_s,
                retention_ms=1000 * BOUNDS.retention_s,
                idempotent_ms=1000 * Wish.idempotency_s,
                retry_ms=1000 * Wish.retry_window_s,
                surge_ms=SURGE_MS,
                shares=SHARES,
            ),
            tiers(numbers),
            midnights_ms=[noon + day * 24 * HOUR_MS for day in range(-3, 90)],
            now_ms=now_ms,
        )
        for user, name in zip(USERS, ("free", "brief", "pro", "paid"), strict=True):
            await self._set_tier(user, name)
            self.model.set_tier(user, name)
        self.state = await read_state(self.redis)
        self.seen_s = time.monotonic()

    async def speak(self) -> None:
        await self.speaker.announce(host="h", pid=1, slots=1, free=0, age_ms=0)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.run(self._end())
        self.run(self.redis.aclose())
        self.runner.close()

    async def _end(self) -> None:
        """Everybody gives up and goes: nothing of it is left."""
        for job in list(self.model.jobs.values()):
            await self.queue.delete(job.id, user=job.user)
        await self.upkeep.tidy()
        check_nothing_left(await read_state(self.redis))

    # Doing things, one or two at a time.

    def do(self, *steps: Step) -> None:
        """At once: then one after the other in some order, as answers and state say."""
        self.run(self._do(steps))

    async def _do(self, steps: tuple[Step, ...]) -> None:
        await self._let_time_pass()
        answers = await asyncio.gather(*(step.real() for step in steps))
        state = await read_state(self.redis)
        wrong = []
        for order in itertools.permutations(range(len(steps))):
            model = copy.deepcopy(self.model) if len(steps) > 1 else self.model
            expected = {i: steps[i].model(model, answers[i]) for i in order}
            if [expected[i] for i in range(len(steps))] != answers:
                wrong.append(f"{answers} is not {expected}")
                continue
            if len(steps) > 1 and (differs := _differences(model, state)):
                wrong.append(differs)
                continue
            # Redis forgets an expired key when somebody asks for it, or sometime.
            await self.redis.exists(*(self.cell.key(name) for name in model.passing))
            model.forget_what_expired()
            self.model, self.state = model, state
            return
        raise AssertionError("; ".join(wrong))

    async def _let_time_pass(self) -> None:
        """Only forward, and no faster than here."""
        state = await read_state(self.redis)
        passed_ms = 1000 * (time.monotonic() - self.seen_s)
        assert state.now_ms >= self.state.now_ms
        assert -SLACK_MS <= state.now_ms - self.model.now_ms <= passed_ms + SLACK_MS
        self.model.now_ms = state.now_ms
        self.model.behind_ms = float(state.strings.get("ahead", 0))
        self.seen_s = time.monotonic()

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        check(self.state, retiered=self.model.retiered)
        _compare(self.model, self.state)

    @rule(data=st.data(), what=st.sampled_from(DEEDS))
    def act(self, data: st.DataObject, what: str) -> None:
        getattr(self, what)(data.draw)

    # What users do.

    def submission(self, new: Submission) -> Step:
        async def real() -> tuple[str, str | None]:
            name, tier = self.model.tiers.of(self.model.tier_names.get(new.user))
            wish = Wish(
                service_tier=new.service_tier,
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
                    limits=_limits(name, tier, self.model),
                    wish=wish,
                )
            except RateLimited:
                return "rate", None
            except Refused as refused:
                codes = {"queue_full": "pool", "too_many_queued_jobs": "own"}
                return codes.get(refused.code, refused.reason), None
            except IdempotencyMismatch:
                return "mismatch", None
            known = admission.job.id if admission.job else None
            return "replayed" if admission.replayed else "accepted", known

        return Step(real, lambda model, _: model.submit(new))

    def submit(self, draw: Draw) -> None:
        asked = (
            draw(st.sampled_from(USERS)),
            draw(st.sampled_from(SIZES_MS)),
            draw(SERVICE_TIERS),
            draw(st.sampled_from(["b1", "b2", "b3"])),
            draw(st.sampled_from([None, None, None, "k1", "k2"])),
            draw(st.booleans()),
        )
        at_once = draw(st.sampled_from(["", "", "", "twice", "with a lease"]))
        new = Submission(next(self.ids), *asked)
        self.submissions.append(new)
        steps = [self.submission(new)]
        if at_once == "twice":
            again = Submission(next(self.ids), *asked)
            self.submissions.append(again)
            steps.append(self.submission(again))
        elif at_once == "with a lease":
            steps.append(self.leasing("r1"))
        self.do(*steps)

    def submit_again(self, draw: Draw) -> None:
        """An ingress that got no answer repeats its call, perhaps late."""
        if self.submissions:
            self.do(self.submission(draw(st.sampled_from(self.submissions[-8:]))))

    def remember(self, draw: Draw) -> None:
        user, key = draw(st.sampled_from(USERS)), draw(st.sampled_from(["k1", "k2"]))
        response = draw(st.text("xy"))
        self.do(
            Step(
                lambda: self.queue.remember(user, key, response),
                lambda model, _: model.remember(user, key, response),
            )
        )

    def cancelling(self, job_id: str, user: str) -> Step:
        async def real() -> State | None:
            try:
                return (await self.queue.cancel(job_id, user=user)).state
            except NotFound:
                return None

        return Step(real, lambda model, _: model.cancel(job_id, user))

    def cancel_or_delete(self, draw: Draw) -> None:
        if not self.submissions:
            return
        asked = draw(st.sampled_from(self.submissions[-12:]))
        user = draw(st.sampled_from([asked.user] * 4 + ["eve"]))
        if draw(st.booleans()):
            self.do(self.cancelling(asked.job_id, user))
            return

        async def real() -> bool:
            try:
                await self.queue.delete(asked.job_id, user=user)
            except NotFound:
                return False
            return True

        self.do(Step(real, lambda model, _: model.delete(asked.job_id, user)))

    def ask_for_usage(self, draw: Draw) -> None:
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

        self.do(Step(real, expected))

    # What replicas do.

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
            assert again[2] == flat
            job = Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))
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

    def lease(self, draw: Draw) -> None:
        at_once = draw(st.sampled_from([False, False, True]))
        self.do(self.leasing("r1"), *([self.leasing("r2")] if at_once else []))

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

    def write(self, draw: Draw) -> None:
        """By one of the last runs, whether it still may or not."""
        if self.runs:
            self._write(draw(st.sampled_from(self.runs[-5:])), draw(WHAT), draw(DONE))

    def _write(self, job: Job, what: str, done: float) -> None:
        spent_ms = int(done * job.est_device_ms)
        total_ms = job.spent_ms + spent_ms
        left_ms = max(1, job.left_device_ms - spent_ms)
        replica = Leases(self.cell, POOL, job.replica, BOUNDS)
        me = job.id, job.fence

        def ending(state: State) -> Step:
            if state is State.COMPLETED:
                real = lambda: replica.complete(job, {}, spent_ms=spent_ms)  # noqa: E731
            else:
                error = ModelFailed("x")
                real = lambda: replica.fail(job, error, spent_ms=spent_ms)  # noqa: E731
            return self.writing(real, lambda model: model.finish(*me, state, total_ms))

        match what:
            case "heartbeat":
                self.do(
                    self.writing(
                        lambda: replica.heartbeat(
                            job,
                            lease_ms=LEASE_MS,
                            phase=Phase.DENOISE,
                            step=1,
                            remaining_ms=left_ms,
                            spent_ms=spent_ms,
                        ),
                        lambda model: model.heartbeat(*me, total_ms, LEASE_MS),
                    )
                )
            case "checkpoint":
                step = int(4 * done)
                self.do(
                    self.writing(
                        lambda: replica.checkpoint(job, f"{job.fence}/{step}", step, left_ms),
                        lambda model: model.checkpoint(*me, step, left_ms),
                    )
                )
            case "refuse":
                self.do(
                    self.writing(
                        lambda: replica.refused(job, CheckpointCorrupt("x")),
                        lambda model: model.refuse_checkpoint(*me),
                    )
                )
            case "yield":
                self.do(
                    self.writing(
                        lambda: replica.give_back(job, spent_ms=spent_ms),
                        lambda model: model.give_back(*me, total_ms),
                    )
                )
            case "complete":
                self.do(ending(State.COMPLETED))
            case "fail":
                self.do(ending(State.FAILED), self.cancelling(job.id, job.user))
            case "end twice":
                self.do(ending(State.COMPLETED), ending(State.COMPLETED))

    def lease_and_write(self, draw: Draw) -> None:
        """As replicas do."""
        self.do(self.leasing("r1"))
        for what in draw(st.lists(WHAT, min_size=1, max_size=3))[: len(self.runs)]:
            self.everything_is_as_the_model_says()
            self._write(self.runs[-1], what, draw(DONE))

    # What the operator and time do.

    def change_a_tier(self, draw: Draw) -> None:
        user, name = draw(st.sampled_from(USERS)), draw(st.sampled_from(TIERS))
        self.do(
            Step(lambda: self._set_tier(user, name), lambda model, _: model.set_tier(user, name))
        )

    async def _set_tier(self, user: str, name: str) -> None:
        await self.redis.hset(self.cell.key("user", user), mapping={"tier": name})

    def change_the_tiers(self, draw: Draw) -> None:
        numbers = draw(NUMBERS)
        self.do(
            Step(
                lambda: self.queue.apply_tiers(tiers(numbers)),
                lambda model, _: model.apply_tiers(tiers(numbers), set(USERS)),
            )
        )

    def tidying(self) -> Step:
        async def real() -> None:
            await self.upkeep.tidy()

        return Step(real, lambda model, _: model.tidy())

    def tidy_up(self, draw: Draw) -> None:
        self.do(self.tidying())

    def let_time_pass(self, draw: Draw) -> None:
        """The clock is set, or it takes its time."""
        if hours := draw(st.sampled_from(HOURS)):
            self.set_the_clock(hours)
        else:
            self.let_leases_run_out(draw(st.booleans()))

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
                    await self._hold(job)
            return (await read_state(self.redis)).now_ms

        def expected(model: QueueModel, now_ms: float) -> float:
            passed_ms = now_ms - model.now_ms
            # A clock that is ahead of Redis's runs slower until they agree.
            least_ms = STEPS * STEP_MS * (0.89 if model.behind_ms else 1)
            assert least_ms <= passed_ms + 1
            model.behind_ms -= min(model.behind_ms, max(0, STEPS * STEP_MS - passed_ms))
            model.now_ms = now_ms
            for job in kept:
                model.heartbeat(job.id, job.fence, job.spent_ms, LEASE_MS)
            return now_ms

        self.do(Step(real, expected))
        self.do(self.tidying())

    async def _hold(self, job: ModelJob) -> None:
        run = next(run for run in self.runs if run.fence == job.fence)
        await Leases(self.cell, POOL, run.replica, BOUNDS).heartbeat(
            run,
            lease_ms=LEASE_MS,
            phase=Phase.DENOISE,
            step=1,
            remaining_ms=1,
            spent_ms=job.spent_ms - run.spent_ms,
        )


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


def _differences(model: QueueModel, state: QueueState) -> str:
    """Where they do not say the same, or nothing."""
    try:
        _compare(model, state)
    except AssertionError as error:
        return str(error)
    return ""


def _compare(model: QueueModel, state: QueueState) -> None:
    assert set(state.jobs) == set(model.jobs)
    for job in model.jobs.values():
        raw = state.jobs[job.id]
        # When it was submitted is Redis's to say, to the millisecond.
        assert abs(int(raw["created_ms"]) - job.created_ms) <= SLACK_MS
        job.created_ms = int(raw["created_ms"])
        assert _fields(raw) == {
            "state": job.state,
            "class": job.service_class,
            "from": job.paid_from,
            "seq": job.seq,
            "left": job.left_ms,
            "spent": job.spent_ms,
            "charged": job.charged_ms,
            "attempts": job.attempts,
            "fence": job.fence,
            "seat": job.seat,
            "day": job.day_ms,
        }
    for each in CLASSES:
        group, fair = model.classes[each], state.hashes.get(f"fair:{POOL}", {})
        assert state.zsets.get(f"counters:{POOL}:{each}", {}) == close(group.counters)
        assert set(state.zsets.get(f"ready:{POOL}:{each}", ())) == group.ready
        assert state.zsets.get(f"floors:{POOL}:{each}", {}) == close(group.floors)
        expected_fair = {
            "credit": group.credit,
            "reached": group.reached,
            "window": group.window,
            "passed": group.passed,
            "lifted": group.last_lift,
        }
        for name, value in expected_fair.items():
            found = float(fair.get(f"{each}:{name}", -1 if name == "lifted" else 0))
            assert found == pytest.approx(value, abs=1e-6, rel=1e-12), name
    for user in USERS:
        used = state.hashes.get(f"used:{user}", {})
        day_ms, *amounts = (int(used.get(name, 0)) for name in ("day", "generations", "gpu_ms"))
        assert tuple(amounts if day_ms == model.day() else (0, 0)) == model.used_now(user)
    ended = state.hashes.get(f"ended:{POOL}", {})
    assert {State(name): int(n) for name, n in ended.items()} == model.ended
    remembered, answers = {}, {}
    for (user, name), known in model.keys.items():
        remembered[f"idempotent:{user}:{name}"] = f"{known.body} {known.job_id}"
        if known.response is not None:
            answers[f"answer:{user}:{name}"] = known.response
    for expected in (remembered, answers):
        kind = "idempotent:" if expected is remembered else "answer:"
        found_here = {name: kept for name, kept in state.strings.items() if name.startswith(kind)}
        assert found_here == expected


def _fields(raw: dict[str, str]) -> dict[str, Any]:
    return {
        "state": raw["state"],
        "class": raw["class"],
        "from": raw["from"],
        "seq": int(raw["seq"]),
        "left": int(raw.get("left_device_ms", raw["est_device_ms"])),
        "spent": int(raw.get("spent_ms", 0)),
        "charged": int(raw["charged_ms"]) if "charged_ms" in raw else None,
        "attempts": int(raw.get("attempts", 0)),
        "fence": int(raw.get("fence", 0)),
        "seat": int(raw.get("seat", 0)),
        "day": int(raw["day"]) if raw.get("day") else None,
    }


@pytest.fixture
def machine(
    moved_redis_server: tuple[RedisServer, Clock],
) -> Iterator[type[Machine]]:
    server, clock = moved_redis_server
    yield type("QueueMachine", (Machine,), {"server": server, "clock": clock})
    clock.set(0)


def test_whatever_is_done_redis_holds_what_the_model_says(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            # To make a failure shorter takes many minutes: only whoever searches has them.
            phases=tuple(Phases) if EXAMPLES else (Phases.generate,),
            max_examples=EXAMPLES or 60,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
