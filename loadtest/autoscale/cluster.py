"""Pools of replicas on a virtual clock, as Ray Serve runs them and Prometheus sees them.

Coarse in what a rule for the number of replicas does not see: a second is the smallest time, a
replica that goes hands its jobs over at once, and of the queue's order only the classes are there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from autoscale.values import ClassSample, Pool, Replicas, Sample

GIVEN_UP_AFTER = 3
"""Failed starts for each replica that there should be, after which Serve starts none any more."""
NEVER = math.inf


@dataclass(eq=False)
class Job:
    """``work_s`` seconds of one device for one user."""

    created_s: float
    work_s: float
    service_class: str
    user: str = ""
    left_s: float = NEVER
    first_step_s: float = NEVER
    done_s: float = NEVER
    leases: int = 0

    def __post_init__(self) -> None:
        self.left_s = self.work_s


@dataclass(eq=False)
class Replica:
    """``device``: it has one, and so its start is under way."""

    ready_s: float = NEVER
    ready: bool = False
    runs: list[Job] = field(default_factory=list)


@dataclass
class Setup:
    """How the replicas of a pool behave.

    ``speed(k)`` is the work that ``k`` runs together do in a second. ``cold_start_s`` and ``fails``
    are asked at each start, with the time; a user has ``running_max`` jobs running at most.
    """

    cold_start_s: Callable[[float], float] = lambda now_s: 30.0
    fails: Callable[[float], bool] = lambda now_s: False
    slots: int = 1
    speed: Callable[[int], float] = lambda runs: 1.0
    running_max: int = 1_000_000


class Rule(Protocol):
    """How many replicas there should be; called once a second."""

    def __call__(
        self,
        samples: Mapping[str, Sample | None],
        replicas: Mapping[str, Replicas],
        now_s: float,
    ) -> Mapping[str, int]: ...


class SimulatedPool:
    """Its queue, its replicas (the oldest first) and what was counted."""

    def __init__(self, pool: Pool, setup: Setup, jobs: Sequence[Job], target: int) -> None:
        self.pool, self.setup = pool, setup
        self.coming = deque(sorted(jobs, key=lambda job: job.created_s))
        self.queued: list[Job] = []
        self.came: list[Job] = []
        self.replicas: list[Replica] = []
        self.target = target
        self.failures, self.failed_s, self.counted = 0, 0.0, 0
        self.targets: list[int] = []
        self.replica_s = 0.0
        self.starts = 0

    @property
    def running(self) -> list[Replica]:
        return [each for each in self.replicas if each.ready]

    @property
    def given_up(self) -> bool:
        return self.target > 0 and self.counted >= GIVEN_UP_AFTER * self.target

    def tick(self, now_s: float, devices: int) -> None:
        """One second. ``devices`` are there for replicas of this pool to have."""
        while self.coming and self.coming[0].created_s <= now_s:
            job = self.coming.popleft()
            self.came.append(job)
            self.queued.append(job)
        self._scale(now_s, devices)
        self._lease(now_s)
        for replica in self.running:
            self._work(replica, now_s)
        self.targets.append(self.target)
        self.replica_s += sum(each.ready_s < NEVER for each in self.replicas)

    def lose(self, count: int) -> None:
        """The nodes of the ``count`` oldest replicas are gone, and with them what was not saved."""
        for replica in self.replicas[:count]:
            self._remove(replica)

    def _scale(self, now_s: float, devices: int) -> None:
        waiting = [each for each in self.replicas if not each.ready]
        going = [*reversed(waiting), *reversed(self.running)]
        for replica in going[: max(0, len(self.replicas) - self.target)]:
            self._remove(replica)
        for replica in [each for each in self.replicas if each.ready_s <= now_s and not each.ready]:
            if self.setup.fails(now_s):
                self._remove(replica)
                self.failures, self.failed_s = self.failures + 1, now_s
                self.counted += 1
            else:
                replica.ready, self.failures = True, 0
        if len(self.running) == len(self.replicas) == self.target:
            self.counted = 0
        if not self.given_up:
            for _ in range(self.target - len(self.replicas)):
                self.replicas.append(Replica())
        free = devices - sum(each.ready_s < NEVER for each in self.replicas)
        for replica in [each for each in self.replicas if each.ready_s == NEVER][: max(0, free)]:
            replica.ready_s = now_s + self.setup.cold_start_s(now_s)
            self.starts += 1

    def _remove(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        self.queued[:0] = replica.runs

    def _users(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for replica in self.replicas:
            for job in replica.runs:
                found[job.user] = found.get(job.user, 0) + 1
        return found

    def _order(self) -> list[Job]:
        seats = list(self.pool.objectives_s)
        return sorted(self.queued, key=lambda job: (seats.index(job.service_class), job.created_s))

    def _lease(self, now_s: float) -> None:
        """To idle ones first, the oldest of them first; a higher class takes a lower's place."""
        if not self.queued:
            return
        seats = list(self.pool.objectives_s)
        users, running = self._users(), self.running
        for job in self._order():
            if users.get(job.user, 0) >= self.setup.running_max:
                continue
            open_ = [each for each in running if len(each.runs) < self.setup.slots]
            if open_:
                replica = min(open_, key=lambda each: len(each.runs))
            else:
                runs = [
                    (seats.index(run.service_class), run.left_s) for r in running for run in r.runs
                ]
                if not runs or max(runs)[0] <= seats.index(job.service_class):
                    return
                replica, victim = max(
                    ((r, run) for r in running for run in r.runs),
                    key=lambda pair: (seats.index(pair[1].service_class), pair[1].left_s),
                )
                replica.runs.remove(victim)
                self.queued.append(victim)
                users[victim.user] -= 1
            self.queued.remove(job)
            replica.runs.append(job)
            users[job.user] = users.get(job.user, 0) + 1
            job.leases += 1
            job.first_step_s = min(job.first_step_s, now_s)

    def _work(self, replica: Replica, now_s: float) -> None:
        second = 1.0
        while replica.runs and second > 0:
            each_s = self.setup.speed(len(replica.runs)) / len(replica.runs)
            first = min(replica.runs, key=lambda job: job.left_s)
            took = min(second, first.left_s / each_s)
            for job in replica.runs:
                job.left_s -= took * each_s
            second -= took
            if first.left_s <= 1e-9:
                first.done_s = now_s + 1 - second
                replica.runs.remove(first)
                self._lease(now_s + 1 - second)

    def sample(self, now_s: float) -> Sample:
        """What the exporter says."""
        users = self._users()
        running = [job for each in self.replicas for job in each.runs]
        classes = {}
        for name in self.pool.objectives_s:
            waiting = [job for job in self.queued if job.service_class == name]
            queued = [job for job in waiting if users.get(job.user, 0) < self.setup.running_max]
            runs = [job for job in running if job.service_class == name]
            came = [job for job in self.came if job.service_class == name]
            classes[name] = ClassSample(
                queued_jobs=len(queued),
                queued_s=sum(job.left_s for job in queued),
                in_flight_jobs=len(runs),
                in_flight_s=sum(job.left_s for job in runs),
                parked_s=sum(job.left_s for job in waiting) - sum(job.left_s for job in queued),
                oldest_wait_s=max((now_s - job.created_s for job in queued), default=0.0),
                arrived_jobs=len(came),
                arrived_s=sum(job.work_s for job in came),
            )
        return Sample(
            at_s=now_s,
            classes=classes,
            busy=sum(bool(each.runs) for each in self.replicas),
            start_failures=self.failures,
            start_failure_age_s=now_s - self.failed_s if self.failures else 0.0,
        )


@dataclass
class Scraper:
    """Looks every ``every_s``; what it saw is there ``delay_s`` later. From ``blind[0]`` to
    ``blind[1]`` it says nothing."""

    every_s: float = 5.0
    delay_s: float = 1.0
    blind: tuple[float, float] = (NEVER, NEVER)
    seen: list[tuple[float, Mapping[str, Sample]]] = field(default_factory=list)

    def look(self, pools: Mapping[str, SimulatedPool], now_s: float) -> Mapping[str, Sample | None]:
        if now_s % self.every_s == 0:
            self.seen.append((now_s, {name: each.sample(now_s) for name, each in pools.items()}))
            self.seen = self.seen[-8:]
        there = [samples for at_s, samples in self.seen if at_s <= now_s - self.delay_s]
        if not there or self.blind[0] <= now_s < self.blind[1]:
            return dict.fromkeys(pools)
        return there[-1]


@dataclass
class Cluster:
    """``devices`` are there for all pools together, the first in the list first."""

    pools: Mapping[str, SimulatedPool]
    rule: Rule
    scraper: Scraper = field(default_factory=Scraper)
    devices: int = 1_000_000
    now_s: float = 0.0

    def run(self, seconds: float) -> None:
        """So many seconds more."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self._tick()
            self.now_s += 1.0

    def _tick(self) -> None:
        replicas = {
            name: Replicas(each.target, len(each.running)) for name, each in self.pools.items()
        }
        targets = self.rule(self.scraper.look(self.pools, self.now_s), replicas, self.now_s)
        for name, each in self.pools.items():
            each.target = targets[name]
            others = sum(
                replica.ready_s < NEVER
                for other in self.pools.values()
                if other is not each
                for replica in other.replicas
            )
            each.tick(self.now_s, self.devices - others)
