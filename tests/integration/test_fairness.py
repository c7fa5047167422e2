"""Who gets how much device time, on real Redis: tenants by weight, classes by share."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest
from redis.asyncio import Redis

from quota.tiers import Tier, Tiers
from serving.jobs import (
    Cell,
    Job,
    JobQueue,
    JobSettings,
    Leases,
    Limits,
    Resident,
    Room,
    Rows,
    State,
    Upkeep,
)
from serving.plan.classes import CLASSES, ServiceClass
from serving.plan.fair import OWED_SEAT
from tests.jobs import LEASE_MS, SHARES, leased, submit
from tests.queue_state import check, read_state

pytestmark = pytest.mark.asyncio

POOL = "demo-wan"
MANY = JobSettings(queue_max=1_000_000, quantum_s=0)
BURST = Limits(inside=ServiceClass.BURST)
RELAXED = Limits(inside=ServiceClass.RELAXED)
OF_CLASS = {each: Limits(inside=each) for each in CLASSES}


async def weigh(cell: Cell, weights: Mapping[str, float], running: int | None = None) -> None:
    """Each user has a tier of their own, of this weight."""
    tiers = {name: Tier(weight=weight, running_jobs=running) for name, weight in weights.items()}
    tiers["other"] = Tier()
    await JobQueue(cell).apply_tiers(Tiers(default_tier="other", tiers=tiers))
    for name in weights:
        await cell.redis.hset(cell.key("user", name), mapping={"tier": name})


class Tenants:
    """Users of one class who always have a few jobs that wait, and a replica that runs them.

    A job takes ``error`` times its estimate, as turns out when it ends.
    """

    def __init__(
        self,
        cell: Cell,
        weights: Mapping[str, float],
        sizes_ms: Mapping[str, Sequence[int]],
        seed: int,
    ) -> None:
        self.cell, self.weights, self.sizes_ms = cell, weights, sizes_ms
        self.draw = random.Random(seed)  # noqa: S311
        self.queue = JobQueue(cell, MANY)
        self.replica = Leases(cell, POOL, "r1", MANY)
        self.served_ms = dict.fromkeys(weights, 0.0)
        self.most = 0.0
        self.present = set(weights)
        self.running: deque[Job] = deque()
        self.waiting = dict.fromkeys(weights, 0)

    async def fill(self) -> None:
        for user in sorted(self.present):
            while self.waiting[user] < 3:
                await submit(
                    self.queue, user=user, est_device_ms=self.draw.choice(self.sizes_ms[user])
                )
                self.waiting[user] += 1

    async def lease(self) -> Job:
        await self.fill()
        job = await leased(self.replica)
        self.waiting[job.user] -= 1
        charge_ms = job.left_device_ms
        self.served_ms[job.user] += charge_ms
        self.most = max(self.most, charge_ms / self.weights[job.user])
        self.running.append(job)
        return job

    async def end(self, error: float) -> None:
        job = self.running.popleft()
        spent_ms = int(error * job.left_device_ms)
        self.served_ms[job.user] += spent_ms - job.left_device_ms
        self.most = max(self.most, spent_ms / self.weights[job.user])
        await self.replica.complete(job, {}, spent_ms=spent_ms)

    async def hand_back(self) -> None:
        """After a third of it, which a checkpoint saves."""
        job = self.running.popleft()
        spent_ms = job.left_device_ms // 3
        left_ms = job.left_device_ms - spent_ms
        self.served_ms[job.user] -= left_ms
        await self.replica.checkpoint(job, str(job.fence), 1, left_ms)
        await self.replica.give_back(job, spent_ms=spent_ms)
        self.waiting[job.user] += 1

    def shares(self) -> dict[str, float]:
        return {user: ms / self.weights[user] for user, ms in self.served_ms.items()}


SIZES = {
    "alike": ({"ann": 1.0, "bob": 1.0}, {"ann": [10_000], "bob": [10_000]}),
    "short and long": ({"ann": 1.0, "bob": 1.0}, {"ann": [1000], "bob": [60_000]}),
    "mixed": ({"ann": 1.0, "bob": 1.0}, {"ann": [1000, 40_000], "bob": [500, 7000, 90_000]}),
    "weights": ({"ann": 4.0, "bob": 0.5}, {"ann": [1000, 40_000], "bob": [3000, 20_000]}),
}


@pytest.mark.parametrize("case", SIZES)
async def test_two_who_always_wait_are_never_further_apart_than_two_charges(
    cell: Cell, case: str
) -> None:
    weights, sizes_ms = SIZES[case]
    await weigh(cell, weights)
    tenants = Tenants(cell, weights, sizes_ms, seed=1)
    for _ in range(150):
        await tenants.lease()
        ann, bob = tenants.shares().values()
        assert abs(ann - bob) <= 2 * tenants.most
        await tenants.end(error=1)
    assert min(tenants.shares().values()) > tenants.most


@pytest.mark.parametrize("seed", range(2))
async def test_the_bound_holds_though_jobs_yield_and_estimates_are_wrong(
    cell: Cell, seed: int
) -> None:
    weights, sizes_ms = SIZES["weights"]
    await weigh(cell, weights)
    tenants = Tenants(cell, weights, sizes_ms, seed)
    for _ in range(200):
        # What runs on is charged as estimated; what ended, as it was.
        while len(tenants.running) > 1:
            if tenants.draw.random() < 0.3:
                await tenants.hand_back()
            else:
                await tenants.end(error=tenants.draw.choice([0.4, 1, 2]))
        await tenants.lease()
        found = cell.key("counters", POOL, "standard")
        counters = dict(await cell.redis.zrange(found, 0, -1, withscores=True))
        shares = tenants.shares()
        assert counters["ann"] - counters["bob"] == pytest.approx(
            shares["ann"] - shares["bob"], abs=0.01
        )
        # What a job took in the end is its charge.
        assert abs(shares["ann"] - shares["bob"]) <= 2 * tenants.most
    check(await read_state(cell.redis))


async def test_who_was_away_gets_nothing_for_it_and_loses_nothing(cell: Cell) -> None:
    weights = {"ann": 1.0, "bob": 1.0}
    await weigh(cell, weights)
    tenants = Tenants(cell, weights, {"ann": [3000, 20_000], "bob": [5000]}, seed=2)
    for _round in range(3):
        tenants.present = {"ann", "bob"}
        await tenants.fill()
        before = tenants.shares()
        for _ in range(40):
            await tenants.lease()
            gained = {user: ms - before[user] for user, ms in tenants.shares().items()}
            # As if both had begun now; where they stood then is one charge more, at most.
            assert abs(gained["ann"] - gained["bob"]) <= 3 * tenants.most
            await tenants.end(error=1)
        # Bob goes: what of his waits is done, and then ann has it all.
        tenants.present = {"ann"}
        while tenants.waiting["bob"]:
            await tenants.lease()
            await tenants.end(error=1)
        alone = [await tenants.lease() for _ in range(20)]
        assert {job.user for job in alone} == {"ann"}
        while tenants.running:
            await tenants.end(error=1)


async def test_jains_index_over_ten_tenants_is_at_least_095(cell: Cell) -> None:
    draw = random.Random(3)  # noqa: S311
    weights = {f"user{n}": draw.choice([0.5, 1.0, 2.0, 4.0]) for n in range(10)}
    sizes_ms = {
        user: draw.sample([1000, 2000, 8000, 15_000, 40_000, 60_000], 3) for user in weights
    }
    await weigh(cell, weights)
    tenants = Tenants(cell, weights, sizes_ms, seed=4)
    for _ in range(600):
        await tenants.lease()
        await tenants.end(error=draw.choice([0.8, 1, 1.2]))
    got = list(tenants.shares().values())
    jain = sum(got) ** 2 / (len(got) * sum(each**2 for each in got))
    assert jain >= 0.95


async def test_equals_within_the_window_go_by_urgency(cell: Cell) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    # A charge of 50 s makes the window as wide.
    await submit(queue, user="ann", est_device_ms=50_000)
    await leased(replica)
    await submit(queue, user="bob", est_device_ms=49_000)
    await submit(queue, user="cleo", est_device_ms=30_000)
    await submit(queue, user="ann", est_device_ms=1000)
    await submit(queue, user="cleo", est_device_ms=2000)
    order = [await leased(replica) for _ in range(4)]
    # Ann's counter is at 50 s, then at 51 s: out of the window of the least, which is 0.
    assert [(job.user, job.est_device_ms // 1000) for job in order] == [
        ("ann", 1),
        ("cleo", 2),
        ("cleo", 30),
        ("bob", 49),
    ]
    await submit(queue, user="ann", est_device_ms=1000)
    await submit(queue, user="dan", est_device_ms=40_000)
    assert (await leased(replica)).user == "ann", "who comes is lifted to who waits"


# Classes.


async def flood(
    cell: Cell, waiting: Sequence[ServiceClass], sizes_ms: Mapping[ServiceClass, Sequence[int]]
) -> list[tuple[ServiceClass, int]]:
    """Leases of a pool in which all of these always wait: class and charge of each."""
    draw = random.Random(5)  # noqa: S311
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)

    async def another(service_class: ServiceClass) -> None:
        await submit(
            queue,
            user=f"of-{service_class}",
            est_device_ms=draw.choice(sizes_ms[service_class]),
            limits=OF_CLASS[service_class],
        )

    for each in waiting:
        for _ in range(3):
            await another(each)
    leases = []
    for _ in range(200):
        job = await leased(replica)
        leases.append((job.service_class, job.left_device_ms))
        await replica.complete(job, {}, spent_ms=job.left_device_ms)
        await another(job.service_class)
    return leases


MIXED = {
    ServiceClass.BURST: [1000, 20_000],
    ServiceClass.STANDARD: [5000, 30_000],
    ServiceClass.RELAXED: [2000, 60_000],
}
ALL_AND_PAIRS = [*combinations(CLASSES, 2), CLASSES]


@pytest.mark.parametrize("waiting", ALL_AND_PAIRS, ids=lambda each: "-".join(each))
async def test_a_class_gets_its_share_in_every_window_whoever_floods(
    cell: Cell, waiting: Sequence[ServiceClass]
) -> None:
    leases = await flood(cell, waiting, MIXED)
    for each in waiting:
        # How far behind its share it is at any moment; in no window does it fall further back than
        # from where it was owed least to where it was owed most.
        most_ms = max(charge_ms for _, charge_ms in leases)
        behind_ms, least_ms, worst_ms = 0.0, 0.0, 0.0
        for service_class, charge_ms in leases:
            behind_ms += SHARES[each] * charge_ms - (charge_ms if service_class == each else 0)
            least_ms = min(least_ms, behind_ms)
            worst_ms = max(worst_ms, behind_ms)
        assert worst_ms <= most_ms, "one job behind its share at most, from the first on"
        got_ms = sum(charge_ms for service_class, charge_ms in leases if service_class == each)
        total_ms = sum(charge_ms for _, charge_ms in leases)
        assert got_ms >= SHARES[each] * total_ms - most_ms


@pytest.mark.parametrize("waiting", ALL_AND_PAIRS, ids=lambda each: "-".join(each))
async def test_no_class_waits_longer_than_its_share_makes_it(
    cell: Cell, waiting: Sequence[ServiceClass]
) -> None:
    """Between two leases of a class the others get what its share leaves them, and one job of each
    more."""
    leases = await flood(cell, waiting, MIXED)
    most_ms = max(charge_ms for _, charge_ms in leases)
    for each in waiting:
        between_ms, last_ms = 0, max(MIXED[each])
        for service_class, charge_ms in leases:
            if service_class == each:
                between_ms, last_ms = 0, charge_ms
            else:
                between_ms += charge_ms
                # It pays off what it was leased last, then is owed, then its turn comes.
                assert between_ms <= last_ms / SHARES[each] + len(waiting) * most_ms


async def test_a_hundred_thousand_free_jobs_delay_a_burst_job_by_one_lease(
    cell: Cell, redis: Redis
) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    first = await submit(queue, user="free0", est_device_ms=30_000, limits=RELAXED)
    await submit_like(cell, redis, first, 100_000)
    assert await redis.zcard(cell.key("queued", POOL)) == 100_001
    for _ in range(3):
        running = await leased(replica)
        assert running.service_class is ServiceClass.RELAXED
        await replica.complete(running, {}, spent_ms=30_000)
    for number in range(5):
        await submit(queue, user="ann", job_id=f"burst{number}", limits=BURST)
        job = await leased(replica)
        if job.service_class is ServiceClass.RELAXED:
            # They were owed it.
            await replica.complete(job, {}, spent_ms=30_000)
            job = await leased(replica)
        assert job.id == f"burst{number}"
        await replica.complete(job, {}, spent_ms=1000)
    # Its cost does not depend on how many wait.
    await submit(queue, user="ann", limits=BURST)
    await redis.config_resetstat()
    await leased(replica)
    calls = await redis.info("commandstats")
    assert sum(each["calls"] for each in calls.values()) < 150


async def submit_like(cell: Cell, redis: Redis, job: Job, jobs: int) -> None:
    """So many more of this job, of a thousand users: the real script, in pipelines."""
    # Its arguments as JobQueue makes them; only id and user differ.
    arguments: list[str | int] = []

    class Recording(Cell):
        async def run(self, script: str, *args: str | int) -> object:
            arguments.extend(args)
            return await super().run(script, *args)

    await submit(
        JobQueue(Recording(redis), MANY),
        job_id=job.id,
        user=job.user,
        est_device_ms=job.est_device_ms,
        limits=RELAXED,
    )
    digest = await redis.script_load(cell._scripts["submit"].script)
    for start in range(0, jobs, 5000):
        async with redis.pipeline(transaction=False) as pipe:
            for n in range(start, start + 5000):
                pipe.evalsha(digest, 1, cell.name, f"free{n}", f"free{n % 1000}", *arguments[2:])
            answers = await pipe.execute()
        assert {answer[0] for answer in answers} == {"accepted"}


# Preemption.


def full_of(*jobs: Job) -> Room:
    """No slot is free, and each has all its steps left."""
    return Room(
        free=0,
        runs=[Resident(job.id, job.fence, job.left_device_ms, 10, True) for job in jobs],
        shapes={job.spec.shape: Rows(4, 4) for job in jobs},
    )


async def test_a_replica_full_of_relaxed_jobs_makes_room_for_a_burst_one(cell: Cell) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    for ms in (60_000, 90_000):
        await submit(queue, est_device_ms=ms, limits=RELAXED)
    runs = [await leased(replica) for _ in range(2)]
    await submit(queue, user="bob", est_device_ms=50_000, limits=RELAXED)
    assert await replica.lease(LEASE_MS, full_of(*runs)) is None, "equals stay"
    burst = await submit(queue, user="bob", est_device_ms=200_000, limits=BURST)
    lease = await replica.lease(LEASE_MS, full_of(*runs))
    assert lease is not None
    victim = next(run for run in runs if (run.id, run.fence) == lease.preempts)
    assert (lease.job.id, victim.est_device_ms) == (burst.id, 90_000)
    await replica.give_back(victim)
    kept = next(run for run in runs if run is not victim)
    await submit(queue, user="bob", est_device_ms=1000, limits=BURST)
    again = await replica.lease(LEASE_MS, full_of(lease.job, kept))
    assert again is not None
    assert again.preempts == (kept.id, kept.fence)


async def test_a_relaxed_job_that_its_class_was_owed_keeps_its_place(cell: Cell) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    for _ in range(20):
        await submit(queue, user="bob", est_device_ms=10_000, limits=BURST)
    relaxed = await submit(queue, user="ann", est_device_ms=100_000, limits=RELAXED)
    while (job := await leased(replica)).id != relaxed.id:
        await replica.complete(job, {}, spent_ms=10_000)
    assert job.seat == OWED_SEAT
    assert (await read_state(cell.redis)).hashes[f"backlog:{POOL}"]["burst:jobs"] != "0"
    assert await replica.lease(LEASE_MS, full_of(job)) is None


# Running jobs.


async def running_at_most(queue: JobQueue, most: int | None) -> None:
    tier = Tier(running_jobs=most)
    await queue.apply_tiers(Tiers(default_tier="free", tiers={"free": tier, "more": Tier()}))


async def test_who_runs_as_many_as_the_tier_allows_is_passed_over_until_one_ends(
    cell: Cell,
) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    await running_at_most(queue, 2)
    for _ in range(4):
        await submit(queue, user="ann", est_device_ms=1000)
    for _ in range(2):
        await submit(queue, user="bob", est_device_ms=9000)
    jobs = [await leased(replica) for _ in range(4)]
    assert [job.user for job in jobs] == ["ann", "ann", "bob", "bob"]
    assert await replica.lease(LEASE_MS) is None
    check(await read_state(cell.redis))
    for end in (
        lambda: replica.complete(jobs[0], {}, spent_ms=1000),
        lambda: queue.cancel(jobs[1].id, user="ann"),
    ):
        await end()
        check(await read_state(cell.redis))
        assert (await leased(replica)).user == "ann"
        assert await replica.lease(LEASE_MS) is None


async def test_a_job_that_yields_makes_room_for_another_of_the_same_user(cell: Cell) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    await running_at_most(queue, 1)
    long = await submit(queue, est_device_ms=50_000)
    run = await leased(replica)
    short = await submit(queue, est_device_ms=1000)
    assert await replica.lease(LEASE_MS) is None
    await replica.give_back(run)
    assert [(await leased(replica)).id, await replica.lease(LEASE_MS)] == [short.id, None]
    assert (await queue.get(long.id, user="ann")).state is State.QUEUED


@pytest.mark.parametrize("how", ["the user's tier", "the tiers"])
async def test_a_tier_that_allows_more_wakes_who_waits(cell: Cell, how: str) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    await running_at_most(queue, 1)
    for _ in range(2):
        await submit(queue)
    await leased(replica)
    assert await replica.lease(LEASE_MS) is None
    if how == "the tiers":
        await running_at_most(queue, 2)
    else:
        await cell.redis.hset(cell.key("user", "ann"), mapping={"tier": "more"})
    # As ingresses and replicas do every second or so.
    await Upkeep(cell, MANY).tidy()
    assert await replica.lease(LEASE_MS) is not None
    check(await read_state(cell.redis))


async def test_a_tier_that_allows_less_counts_at_the_next_lease(cell: Cell) -> None:
    queue, replica = JobQueue(cell, MANY), Leases(cell, POOL, "r1", MANY)
    await running_at_most(queue, None)
    # Waiting, and ready as the tier was: all of them.
    for user in [f"user{n}" for n in range(5)] * 2:
        await submit(queue, user=user)
    first = {(await leased(replica)).user for _ in range(5)}
    assert len(first) == 5
    await running_at_most(queue, 1)
    assert await replica.lease(LEASE_MS) is None
    await submit(queue, user="new")
    assert (await leased(replica)).user == "new"
    check(await read_state(cell.redis))
