"""What the queue must do, in plain Python: no Redis, no keys, no scripts, and no care for speed.

Who waits, what everybody was leased, what is left of their allowances and what their credits pay.
Which class, which tenant and which job go first is :mod:`serving.plan.fair` and
:mod:`serving.plan.rank`, over all that wait instead of the heads of lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from quota.tiers import Tier, Tiers
from serving.jobs import TERMINAL, State
from serving.plan.classes import CLASSES, ServiceClass, ServiceTier
from serving.plan.fair import (
    CANDIDATES,
    OWED_SEAT,
    after_lease,
    class_order,
    corrected,
    is_overdue,
    lifted,
    passed_over,
    window,
    woken,
)
from serving.plan.rank import Contender, rank
from tests.ledger_model import LedgerModel

MINUTE_MS = 60_000
GONE_MS = 3_600_000
KEPT = ("idempotent", "answer")
SEATS = {each: seat for seat, each in enumerate(CLASSES)}
QUEUE_SHARES = {
    ServiceClass.BURST: 1.0,
    ServiceClass.STANDARD: 0.9,
    ServiceClass.RELAXED: 0.8,
}
"""How much of the queue a class may fill."""


@dataclass
class ModelJob:
    id: str
    user: str
    service_class: ServiceClass
    paid_from: str
    seq: int
    est_ms: int
    left_ms: int
    day_ms: int | None
    created_ms: int
    credits: int = 0
    """Held for it; once it has ended, what it cost."""
    state: State = State.QUEUED
    started: bool = False
    seat: int = 0
    fence: int = 0
    attempts: int = 0
    spent_ms: int = 0
    charged_ms: int | None = None
    weight: float = 1.0
    checkpoint_step: int | None = None
    step: int = 0
    made_a_step: bool = False
    lease_until_ms: float = 0
    expires_ms: float = 0

    @property
    def waits(self) -> bool:
        return self.state is State.QUEUED

    @property
    def runs(self) -> bool:
        return self.state is State.IN_PROGRESS

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL


@dataclass
class Remembered:
    """Until ``expires_ms`` by the clock of Redis, which is that of its keys."""

    body: str
    job_id: str
    expires_ms: float
    response: str | None = None


@dataclass
class Standing:
    """Of one class: tenants by counter, those of them who may be leased a job, and the rest."""

    counters: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    """What a counter was raised to last."""
    ready: set[str] = field(default_factory=set)
    credit: float = 0.0
    reached: float = 0.0
    window: float = 0.0
    passed: float = 0.0
    last_lift: float = -1.0

    @property
    def least(self) -> float | None:
        return min((self.counters[user] for user in self.ready), default=None)

    def raise_to(self, user: str, counter: float) -> bool:
        """Whether that is a change."""
        had = self.counters.get(user)
        if had == counter:
            return False
        self.counters[user] = counter
        if had is not None:  # a new one was charged nothing that could come back
            self.floors[user] = counter
        return True


@dataclass
class Bounds:
    """As :class:`serving.jobs.JobSettings` and the submission have them, in ms."""

    queue_max: int
    attempts_max: int
    queue_ttl_ms: float
    retention_ms: float
    idempotent_ms: float
    retry_ms: float
    surge_ms: int
    shares: Mapping[ServiceClass, float]


@dataclass
class Submission:
    job_id: str
    user: str
    est_ms: int
    service_tier: ServiceTier
    body: str
    key: str | None
    retried: bool
    price: int = 0
    max_credits: int | None = None


@dataclass(frozen=True)
class Terms:
    """In which class a job is made, and who pays."""

    service_class: ServiceClass
    paid_from: str
    credits: int = 0


@dataclass
class QueueModel:
    """One pool. ``now_ms`` is the time of the scripts, ``behind_ms`` how far Redis's is behind."""

    bounds: Bounds
    tiers: Tiers
    midnights_ms: list[int]
    now_ms: float
    behind_ms: float = 0.0
    seq: int = 0
    fence: int = 0
    ledger: LedgerModel = field(default_factory=LedgerModel)
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    gone: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Whose a forgotten job was, and until when that is known, by the clock of Redis."""
    tier_names: dict[str, str] = field(default_factory=dict)
    used: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    paid_ms: dict[str, float] = field(default_factory=dict)
    keys: dict[tuple[str, str], Remembered] = field(default_factory=dict)
    same: dict[tuple[str, str], Remembered] = field(default_factory=dict)
    classes: dict[ServiceClass, Standing] = field(
        default_factory=lambda: {each: Standing() for each in CLASSES}
    )
    parked: set[str] = field(default_factory=set)
    """Users whose jobs wait for one of theirs to end."""
    ended: dict[State, int] = field(default_factory=dict)
    arrived: Counter[tuple[ServiceClass, str]] = field(default_factory=Counter)
    """By class, jobs and ms that were accepted."""
    refused: Counter[str] = field(default_factory=Counter)
    """By reason, and those that were replayed."""
    steps: Counter[str] = field(default_factory=Counter)
    """Steps that were for nothing: lost and redone."""
    measured: Counter[tuple[ServiceClass, str]] = field(default_factory=Counter)
    """How often something was measured: wait, first_step, done. And by outcome (attained, missed)
    jobs that ended; no objective is so short that a job which was made could miss it."""
    retiered: set[str] = field(default_factory=set)
    """Whose tier changed since it was last looked at."""

    # Time.

    @property
    def redis_ms(self) -> float:
        return self.now_ms - self.behind_ms

    def set_clock(self, by_ms: float) -> None:
        """The clock of Redis is moved, right after somebody spoke: time only goes forward. As long
        a silence is no fault of those who hold a lease."""
        before_ms = self.now_ms
        if by_ms < 0:
            self.behind_ms -= by_ms
        else:
            self.now_ms += by_ms - min(by_ms, self.behind_ms)
            self.behind_ms -= min(by_ms, self.behind_ms)
        for job in self.running():
            job.lease_until_ms += self.now_ms - before_ms

    # Who there is.

    def tier(self, user: str) -> Tier:
        return self.tiers.of(self.tier_names.get(user))[1]

    def of(self, user: str) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.user == user]

    def waiting(self, service_class: ServiceClass | None = None) -> list[ModelJob]:
        wanted = CLASSES if service_class is None else (service_class,)
        return [job for job in self.jobs.values() if job.waits and job.service_class in wanted]

    def running(self) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.runs]

    def may_run_another(self, user: str) -> bool:
        most = self.tier(user).running_jobs
        return most is None or sum(job.runs for job in self.of(user)) < most

    def waits_in(self, user: str, service_class: ServiceClass) -> bool:
        return any(job.user == user for job in self.waiting(service_class))

    def backlog_ms(self, service_class: ServiceClass) -> int:
        return sum(job.left_ms for job in self.waiting(service_class))

    # Admission.

    def day(self) -> int:
        """When the day began that it is."""
        return max(each for each in self.midnights_ms if each <= self.now_ms)

    def used_now(self, user: str) -> tuple[int, int]:
        day_ms, generations, gpu_ms = self.used.get(user, (-1, 0, 0))
        return (generations, gpu_ms) if day_ms == self.day() else (0, 0)

    def surges(self) -> bool:
        ahead = self.backlog_ms(ServiceClass.BURST) + self.backlog_ms(ServiceClass.STANDARD)
        return ahead > self.bounds.surge_ms

    def submit(self, new: Submission) -> tuple[str, str | None]:
        """What becomes of it, and the id of its job."""
        outcome, job_id = self._submit(new)
        if outcome != "accepted":
            self.refused[outcome] += 1
        return outcome, job_id

    def _submit(self, new: Submission) -> tuple[str, str | None]:
        if new.job_id in self.jobs:
            return "accepted", new.job_id
        if new.key and (known := self.keys.get((new.user, new.key))):
            if known.body != new.body:
                return "mismatch", None
            return "replayed", known.job_id if known.job_id in self.jobs else None
        # A key says it better.
        made = None if new.key else self.same.get((new.user, new.body))
        if new.retried and made and made.job_id in self.jobs:
            return "replayed", made.job_id
        reason = self._no_room(new)
        if reason:
            return reason, None
        terms = self._waterfall(new)
        if isinstance(terms, str):
            return terms, None
        if len(self.waiting()) >= self.bounds.queue_max * QUEUE_SHARES[terms.service_class]:
            return "pool", None
        if terms.credits:
            if new.job_id in self.ledger.holds:
                return "replayed", None  # its job was deleted
            self.ledger.hold(new.user, new.job_id, terms.credits, self.now_ms)
        self.seq += 1
        limited = self._daily(new.user) and terms.paid_from == "allowance"
        job = ModelJob(
            id=new.job_id,
            user=new.user,
            service_class=terms.service_class,
            paid_from=terms.paid_from,
            credits=terms.credits,
            seq=self.seq,
            est_ms=new.est_ms,
            left_ms=new.est_ms,
            day_ms=self.day() if limited else None,
            created_ms=int(self.now_ms),
        )
        if limited:
            generations, gpu_ms = self.used_now(new.user)
            self.used[new.user] = (self.day(), generations + 1, gpu_ms + new.est_ms)
        self._enqueue(job)
        self.arrived[job.service_class, "jobs"] += 1
        self.arrived[job.service_class, "ms"] += job.est_ms
        bounds = self.bounds
        same = Remembered(new.body, job.id, self.redis_ms + bounds.retry_ms)
        if new.key:
            until_ms = self.redis_ms + bounds.idempotent_ms
            self.keys[new.user, new.key] = Remembered(new.body, job.id, until_ms)
        else:
            self.same[new.user, new.body] = same
        return "accepted", job.id

    def remember(self, user: str, key: str, response: str) -> None:
        known = self.keys.get((user, key))
        if known and known.response is None:
            known.response = response

    @property
    def passing(self) -> list[str]:
        """Keys that expire, and one that never was."""
        keys = [f"{kind}:{user}:{key}" for user, key in self.keys for kind in KEPT]
        same = [f"same:{user}:{body}" for user, body in self.same]
        return ["nothing", *keys, *same, *(f"gone:{job_id}" for job_id in self.gone)]

    def forget_what_expired(self) -> None:
        """It does not come back when the clock does."""
        for remembered in (self.keys, self.same):
            for name, known in list(remembered.items()):
                if known.expires_ms <= self.redis_ms:
                    del remembered[name]
        self.gone = {job: gone for job, gone in self.gone.items() if gone[1] > self.redis_ms}

    def _daily(self, user: str) -> bool:
        tier = self.tier(user)
        return tier.generations_per_day is not None or tier.gpu_seconds_per_day is not None

    def _no_room(self, new: Submission) -> str | None:
        tier = self.tier(new.user)
        if tier.requests_per_minute is not None:
            paid = min(max(self.paid_ms.get(new.user, 0), self.now_ms), self.now_ms + MINUTE_MS)
            after = paid + MINUTE_MS / tier.requests_per_minute
            if after > self.now_ms + MINUTE_MS + 0.5:
                return "rate"
            self.paid_ms[new.user] = after
        queued = sum(job.waits for job in self.of(new.user))
        if tier.queued_jobs is not None and queued >= tier.queued_jobs:
            return "own"
        return None

    def _waterfall(self, new: Submission) -> Terms | str:
        """Inside the allowance, then from credits, then when there is room; or what is short."""
        tier = self.tier(new.user)
        short = self._short(new)
        terms = None if short else self._inside(new)
        if terms:
            return terms
        if new.service_tier is ServiceTier.FLEX:
            relaxed = Terms(ServiceClass.RELAXED, "relaxed")
            return relaxed if tier.beyond == "relaxed" else short
        # What the tier does not give, credits would have to.
        short = "priority" if new.service_tier is ServiceTier.PRIORITY and not short else short
        if self._may_pay(new):
            short = self._unpaid(new)
            if not short:
                return Terms(ServiceClass.BURST, "credits", new.price)
        if new.service_tier is ServiceTier.AUTO and tier.beyond == "relaxed":
            return Terms(ServiceClass.RELAXED, "relaxed")
        return short

    def _class_now(self, user: str) -> tuple[ServiceClass, int | None]:
        """Inside the allowance, and how many generations that is."""
        tier = self.tier(user)
        inside, most = tier.service_class, tier.generations_per_day
        if tier.surge and self.surges():
            inside = tier.surge.service_class or inside
            if tier.surge.generations_per_day is not None:
                most = tier.surge.generations_per_day
        return inside, most

    def _short(self, new: Submission) -> str:
        """What of the allowance does not suffice, if anything."""
        _, most = self._class_now(new.user)
        generations, gpu_ms = self.used_now(new.user)
        gpu_s = self.tier(new.user).gpu_seconds_per_day
        if most is not None and generations >= most:
            return "generations"
        if gpu_s is not None and gpu_ms + new.est_ms > 1000 * gpu_s:
            return "gpu"
        return ""

    def _inside(self, new: Submission) -> Terms | None:
        """Of an allowance that suffices; nothing where the tier's class is too low."""
        inside, _ = self._class_now(new.user)
        match new.service_tier:
            case ServiceTier.FLEX if self.tier(new.user).beyond == "relaxed":
                return None
            case ServiceTier.FLEX:
                inside = ServiceClass.RELAXED
            case ServiceTier.PRIORITY if inside is not ServiceClass.BURST:
                return None
            case ServiceTier.DEFAULT:
                inside = max(inside, ServiceClass.STANDARD, key=SEATS.__getitem__)
        return Terms(inside, "allowance")

    def _may_pay(self, new: Submission) -> bool:
        """Whether the caller or the tier said so."""
        said = new.service_tier is ServiceTier.PRIORITY or new.max_credits is not None
        return said or self.tier(new.user).beyond == "credits"

    def _unpaid(self, new: Submission) -> str:
        """Why credits do not pay, if they do not."""
        if new.max_credits is not None and new.price > new.max_credits:
            return "max_credits"
        if new.price and self.ledger.debt(new.user):
            return "debt"
        if new.price > self.ledger.spendable(new.user, self.now_ms):
            return "credits"
        return ""

    # Waiting and being leased.

    def _enqueue(self, job: ModelJob) -> None:
        begins = not self.waits_in(job.user, job.service_class)
        job.state = State.QUEUED
        self.jobs[job.id] = job
        if not begins:
            return
        group = self.classes[job.service_class]
        had = group.counters.get(job.user)
        counter = lifted(had, group.least, group.reached, group.last_lift, group.window)
        if group.raise_to(job.user, counter):
            group.last_lift = counter
        if self.may_run_another(job.user):
            group.ready.add(job.user)
        else:
            self.parked.add(job.user)

    def _park_or_wake(self, user: str) -> None:
        """After one more or one less of the user's jobs runs."""
        self.retiered.discard(user)
        wakes = self.may_run_another(user)
        if wakes and user not in self.parked:
            return
        self.parked.discard(user)
        for each, group in self.classes.items():
            if self.waits_in(user, each):
                if wakes:
                    had = group.counters.get(user, group.reached)
                    group.raise_to(user, woken(had, group.least, group.reached, group.window))
                    group.ready.add(user)
                else:
                    group.ready.discard(user)
                    self.parked.add(user)

    def _leave(self, job: ModelJob, state: State) -> None:
        job.state = state
        if not self.waits_in(job.user, job.service_class):
            self.classes[job.service_class].ready.discard(job.user)

    def first(self, at_ms: float) -> ModelJob | None:
        """The job that goes first."""
        waiting = [each for each in CLASSES if self.classes[each].ready]
        order = class_order({each: self.classes[each].credit for each in CLASSES}, waiting)
        for each in order:
            group = self.classes[each]
            tenants = sorted(group.ready, key=lambda user: (group.counters[user], user))
            if is_overdue(group.passed, group.window):
                tenants = tenants[:1]
            most = group.counters[tenants[0]] + group.window
            tenants = [user for user in tenants[:CANDIDATES] if group.counters[user] <= most]
            jobs = [job for job in self.waiting(each) if job.user in tenants]
            return min(jobs, key=lambda job: (rank(_contender(job), at_ms), job.seq))
        return None

    def lease(self, lease_ms: float, at_ms: float | None = None) -> ModelJob | None:
        """The job that an idle replica gets, by the clock of the scripts to the millisecond."""
        self.reap()
        at_ms = self.now_ms if at_ms is None else at_ms
        # A tier that changed may allow less than when the tenant was put among the ready.
        while (job := self.first(at_ms)) and not self.may_run_another(job.user):
            self._park_or_wake(job.user)
        if job is None:
            return None
        group = self.classes[job.service_class]
        waiting = [each for each in CLASSES if self.classes[each].ready]
        job.seat = OWED_SEAT if group.credit > 0 else SEATS[job.service_class]
        least = min(group.ready, key=lambda user: (group.counters[user], user))
        group.reached = max(group.reached, group.counters[least])
        self._leave(job, State.IN_PROGRESS)
        self.fence += 1
        job.fence, job.attempts, job.started = self.fence, job.attempts + 1, True
        job.step = job.checkpoint_step or 0
        job.lease_until_ms = self.now_ms + lease_ms
        credits = {each: self.classes[each].credit for each in CLASSES}
        after = after_lease(credits, waiting, job.service_class, job.left_ms, self.bounds.shares)
        for each, credit in after.items():
            self.classes[each].credit = credit
        job.weight = self.tier(job.user).weight
        job.charged_ms = job.left_ms + job.spent_ms
        group.window = window(group.window, job.left_ms, job.weight)
        is_least = job.user == least
        group.passed = passed_over(group.passed, job.left_ms, job.weight, is_least=is_least)
        group.counters[job.user] += job.left_ms / job.weight
        self._park_or_wake(job.user)
        return job

    def _settle(self, job: ModelJob, *, lost: bool = False) -> None:
        """Its lease ended; what it was charged becomes what it has spent. What no checkpoint saves
        of a run that was lost is not spent."""
        assert job.charged_ms is not None
        if lost:
            job.spent_ms = max(0, min(job.spent_ms, job.charged_ms - job.left_ms))
        group = self.classes[job.service_class]
        by = (job.spent_ms - job.charged_ms) / job.weight
        floor = group.floors.get(job.user) if by < 0 else None
        group.counters[job.user] = corrected(group.counters[job.user], by, floor)
        job.charged_ms = None
        del self.jobs[job.id]
        self._park_or_wake(job.user)

    def _requeue(self, job: ModelJob) -> None:
        group = self.classes[job.service_class]
        if group.credit < 0:
            group.credit = min(0.0, group.credit + job.left_ms)
        self._enqueue(job)

    # What runs do.

    def run(self, job_id: str, fence: int) -> ModelJob | None:
        """The run of this fence, while it may write."""
        job = self.jobs.get(job_id)
        return job if job and job.runs and job.fence == fence else None

    def heartbeat(
        self, job_id: str, fence: int, spent_ms: int, lease_ms: float, step: int = 0
    ) -> bool:
        job = self.run(job_id, fence)
        if job:
            job.step = step
            if step:
                self._make_first_step(job)
            job.spent_ms = spent_ms
            job.lease_until_ms = self.now_ms + lease_ms
        return job is not None

    def checkpoint(self, job_id: str, fence: int, step: int, left_ms: int) -> bool:
        job = self.run(job_id, fence)
        if job and step >= (job.checkpoint_step or 0):
            job.checkpoint_step, job.left_ms = step, left_ms
        return job is not None

    def _make_first_step(self, job: ModelJob) -> None:
        if not job.made_a_step:
            job.made_a_step = True
            self.measured[job.service_class, "wait"] += 1
            self.measured[job.service_class, "first_step"] += 1

    def _waste_steps(self, how: str, job: ModelJob, step: int) -> None:
        """Those behind its checkpoint."""
        self.steps[how] += max(0, step - (job.checkpoint_step or 0))

    def give_back(self, job_id: str, fence: int, spent_ms: int, step: int = 0) -> bool:
        job = self.run(job_id, fence)
        if job:
            self._waste_steps("redone", job, step)
            job.attempts -= 1
            job.spent_ms = spent_ms
            self._settle(job)
            self._requeue(job)
        return job is not None

    def refuse_checkpoint(self, job_id: str, fence: int) -> bool:
        job = self.run(job_id, fence)
        if job:
            self.steps["lost"] += job.checkpoint_step or 0
            job.step = 0
            job.checkpoint_step, job.left_ms = None, job.est_ms
        return job is not None

    def finish(self, job_id: str, fence: int, state: State, spent_ms: int) -> bool:
        job = self.run(job_id, fence)
        if job:
            job.spent_ms = spent_ms
            self._end(job, state)
            return True
        known = self.jobs.get(job_id)
        return bool(known and known.state is state and known.fence == fence)

    def _end(self, job: ModelJob, state: State) -> None:
        if job.runs:
            self._settle(job)
            self.jobs[job.id] = job
        self._leave(job, state)
        job.expires_ms = self.now_ms + self.bounds.retention_ms
        self.ended[state] = self.ended.get(state, 0) + 1
        self._measure_end(job, state)
        if job.day_ms is not None and self.used.get(job.user, (None,))[0] == job.day_ms:
            _, generations, gpu_ms = self.used[job.user]
            counts = state is State.COMPLETED or (state is State.CANCELLED and job.spent_ms > 0)
            generations -= 0 if counts else 1
            gpu_ms -= job.est_ms - (job.spent_ms if counts else 0)
            self.used[job.user] = (job.day_ms, max(0, generations), max(0, gpu_ms))
        if job.credits:
            job.credits = job.credits if state is State.COMPLETED else 0
            self.ledger.settle(job.id, job.credits, self.now_ms)

    def _measure_end(self, job: ModelJob, state: State) -> None:
        if state is State.COMPLETED:
            self._make_first_step(job)
            self.measured[job.service_class, "done"] += 1
        elif job.started and not job.made_a_step:
            self.measured[job.service_class, "wait"] += 1
        if state is not State.CANCELLED:
            outcome = "attained" if state is State.COMPLETED else "missed"
            self.measured[job.service_class, outcome] += 1

    # What owners and time do.

    def cancel(self, job_id: str, user: str) -> State | None:
        job = self.jobs.get(job_id)
        if job is None or job.user != user:
            return None
        if not job.terminal:
            self._end(job, State.CANCELLED)
        return job.state

    def delete(self, job_id: str, user: str) -> bool:
        if self.cancel(job_id, user) is None:
            return self.gone.get(job_id, ("", 0.0))[0] == user
        self._forget(self.jobs[job_id])
        return True

    def _forget(self, job: ModelJob) -> None:
        del self.jobs[job.id]
        self.gone[job.id] = job.user, self.redis_ms + GONE_MS

    def reap(self) -> None:
        lapsed = [job for job in self.running() if job.lease_until_ms <= self.now_ms]
        for job in sorted(lapsed, key=lambda job: (job.lease_until_ms, job.id)):
            self._waste_steps("lost", job, job.step)
            if job.attempts >= self.bounds.attempts_max:
                self._end(job, State.FAILED)
            else:
                self._settle(job, lost=True)
                self._requeue(job)

    def tidy(self) -> None:
        self.reap()
        for job in sorted(self.waiting(), key=lambda job: job.seq):
            if self.now_ms - job.created_ms >= self.bounds.queue_ttl_ms and not job.started:
                self._end(job, State.EXPIRED)
        for each, group in self.classes.items():
            for user, counter in list(group.counters.items()):
                runs = any(job.runs for job in self.of(user))
                forgettable = counter <= group.reached + group.window
                if forgettable and not self.waits_in(user, each) and not runs:
                    del group.counters[user]
                    group.floors.pop(user, None)
        for user in list(self.parked):
            self._park_or_wake(user)
        self.ledger.expire(self.now_ms)
        for job in list(self.jobs.values()):
            if job.terminal and job.expires_ms <= self.now_ms:
                self._forget(job)

    def set_tier(self, user: str, name: str) -> None:
        self.tier_names[user] = name
        self.retiered.add(user)

    def apply_tiers(self, tiers: Tiers, users: set[str]) -> None:
        self.tiers = tiers
        self.retiered |= users


def _contender(job: ModelJob) -> Contender:
    seat = SEATS[job.service_class]
    return Contender(job.created_ms, job.est_ms, job.left_ms, seat)
