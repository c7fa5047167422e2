"""A process that dies after any command of what it does, or only loses its connection there:
nothing is half done, and whoever does it again gets what it was to be."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.tiers import Tier, Tiers
from serving.jobs import Limits, Phase, State, Wish
from serving.plan.errors import NotFound
from tests.crash_points import POOL, Actor, Case
from tests.jobs import LEASE_MS, spec, submit
from tests.queue_state import QueueState, check, check_nothing_left

pytestmark = pytest.mark.asyncio

LIMITS = Limits(generations=9, gpu_ms=100_000, requests_per_minute=60, days_ms=[0, 10**14])
OLD = Tiers(default_tier="old", tiers={"old": Tier(running_jobs=1, weight=2)})
NEW = Tiers(default_tier="new", tiers={"new": Tier(weight=3), "newer": Tier(running_jobs=4)})
ids = (f"video_{n}" for n in itertools.count())


async def nothing(actor: Actor) -> None:
    await actor.queue.apply_tiers(OLD)


async def two_wait(actor: Actor) -> None:
    await nothing(actor)
    for _ in range(2):
        await submit(actor.queue, est_device_ms=1000, limits=LIMITS)


async def one_runs(actor: Actor) -> None:
    await two_wait(actor)
    assert await actor.leases.lease(LEASE_MS)


# What is done, by whoever does it the first time and again.


async def submits(actor: Actor) -> None:
    """As an ingress, which makes up an id for each request that comes in."""
    job_id = next(ids)
    admission = await actor.ask(
        actor.queue.submit,
        job_id,
        user="ann",
        alias="sora-2",
        spec=spec(),
        est_device_ms=1000,
        limits=LIMITS,
        wish=Wish(body_sha256="body", idempotency_key="key"),
    )
    answer = admission.response or f"made {admission.job.id}"
    await actor.ask(actor.queue.remember, "ann", "key", answer)


async def works(actor: Actor) -> None:
    """As a replica: each job is handed back once, half done, and then completed."""
    while lease := await actor.ask(actor.leases.lease, LEASE_MS):
        await work(actor, lease.job)


async def work(actor: Actor, job: Any) -> None:
    if job.checkpoint:
        await actor.ask(actor.leases.resumed, job)
        await actor.ask(actor.leases.complete, job, {"by": "us"}, spent_ms=500)
        return
    progress: dict[str, Any] = {"phase": Phase.DENOISE, "step": 2, "remaining_ms": 1}
    await actor.ask(actor.leases.heartbeat, job, lease_ms=LEASE_MS, spent_ms=300, **progress)
    await actor.ask(actor.leases.checkpoint, job, "c", 2, 500)
    await actor.ask(actor.leases.give_back, job, spent_ms=500)


async def changes_tiers(actor: Actor) -> None:
    await actor.ask(actor.queue.apply_tiers, NEW)


async def deletes(actor: Actor) -> None:
    for job in await jobs_of(actor):
        with suppress(NotFound):
            await actor.ask(actor.queue.cancel, job, user="ann")
        await actor.ask(actor.queue.delete, job, user="ann")


async def jobs_of(actor: Actor) -> list[str]:
    page = await actor.ask(actor.queue.list, "ann", limit=10)
    return [job.id for job in page.jobs]


async def looks(actor: Actor) -> None:
    await actor.ask(actor.queue.usage, "ann", LIMITS, [(POOL, 1000)])
    await actor.ask(actor.queue.top, POOL)
    for job in await jobs_of(actor):
        await actor.ask(actor.queue.explain, job)


async def tidies(actor: Actor) -> None:
    await actor.ask(actor.upkeep.tidy)
    for job in await actor.ask(actor.upkeep.garbage, 10):
        await actor.ask(actor.upkeep.removed, job)


# What is there when it is done.


async def one_job_and_its_answer(actor: Actor, state: QueueState) -> None:
    (job,) = state.jobs
    assert used(state) == (1, 1000)
    # Others have the same answer from now on.
    admission = await actor.queue.submit(
        next(ids),
        user="ann",
        alias="sora-2",
        spec=spec(),
        est_device_ms=1000,
        limits=LIMITS,
        wish=Wish(body_sha256="body", idempotency_key="key"),
    )
    assert (admission.replayed, admission.response) == (True, f"made {job}")
    assert admission.job is not None
    assert admission.job.id == job


async def both_are_done(actor: Actor, state: QueueState) -> None:
    assert {job["state"] for job in state.jobs.values()} == {State.COMPLETED}
    assert len(state.jobs) == 2
    assert state.hashes[f"ended:{POOL}"] == {"completed": "2"}
    # What they took is what was charged, once.
    spent_ms = sum(int(job["spent_ms"]) for job in state.jobs.values())
    assert used(state) == (2, spent_ms)
    assert state.zsets[f"counters:{POOL}:standard"] == {"ann": spent_ms / 2}
    assert 1800 <= spent_ms <= 2000


async def the_new_tiers_hold(actor: Actor, state: QueueState) -> None:
    assert state.hashes["tiers"] == {
        "default": "new",
        "new:weight": "3.0",
        "newer:weight": "1.0",
        "newer:running_jobs": "4",
    }


async def nothing_is_left(actor: Actor, state: QueueState) -> None:
    assert (state.jobs, used(state)) == ({}, (0, 0))
    assert state.hashes[f"ended:{POOL}"] == {"cancelled": "2"}
    check_nothing_left(state)


async def all_is_as_it_was(actor: Actor, state: QueueState) -> None:
    assert sorted(job["state"] for job in state.jobs.values()) == ["in_progress", "queued"]
    assert used(state) == (2, 2000)


def used(state: QueueState) -> tuple[int, int]:
    found = state.hashes["used:ann"]
    return int(found["generations"]), int(found["gpu_ms"])


def sound_in_old_tiers_or_new(state: QueueState) -> None:
    check(state, retiered=["ann"])
    assert state.hashes["tiers"]["default"] in ("old", "new")


CASES = (
    Case(submits, nothing, one_job_and_its_answer),
    Case(works, two_wait, both_are_done, recovers=True),
    Case(changes_tiers, one_runs, the_new_tiers_hold, sound_in_old_tiers_or_new),
    Case(deletes, one_runs, nothing_is_left),
    Case(looks, one_runs, all_is_as_it_was),
    Case(tidies, one_runs, all_is_as_it_was),
)


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
@pytest.mark.parametrize("how", ["dies", "is cut off"])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_after_any_command_nothing_is_half_done_and_doing_it_again_does_it(
    redis: Redis, redis_server: RedisServer, case: Case, how: str, heard: bool
) -> None:
    await case.cut_short(redis, redis_server, how, heard=heard)
