"""What a replica says of itself, from the start of its process to its drain: real Redis, real
processes, the real demo pipeline."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from deployments.starting import starting
from deployments.worker import Worker
from serving.jobs import (
    Cell,
    JobQueue,
    JobSettings,
    Leases,
    PoolState,
    ReplicaStatus,
    State,
    Upkeep,
)
from serving.media import ArtifactStore, open_store
from serving.models.family import Denoising, Family
from serving.models.load import load_family
from serving.plan.catalog import BatchPolicy, Model, Placement
from tests.clock import Clock
from tests.jobs import ended, submit, until

pytestmark = pytest.mark.asyncio

POOL = "demo-wan"


@pytest.fixture(scope="session")
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    return moved_redis_server[0]


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> StackSettings:
    return StackSettings(redis_url=SecretStr(redis_server.url), data_dir=tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "artifacts").as_uri())


@pytest.fixture(scope="module")
def family(demo_model: Model, models_dir: Path) -> Family:
    return load_family(demo_model, models_dir)


async def state(queue: JobQueue) -> PoolState:
    return (await queue.pools([POOL]))[POOL]


def statuses(pool: PoolState) -> list[ReplicaStatus]:
    return [replica.state for replica in pool.replicas]


# Starting.


async def test_a_replica_is_starting_while_its_constructor_blocks_and_then_ready(
    settings: StackSettings,
    queue: JobQueue,
    cell: Cell,
    demo_model: Model,
    family: Family,
    store: ArtifactStore,
    upkeep: Upkeep,
) -> None:
    def construct() -> None:
        with starting(settings, POOL, "r1"):
            loaded.wait()

    loaded = threading.Event()
    constructing = asyncio.create_task(asyncio.to_thread(construct))

    async def seen() -> bool:
        return statuses(await state(queue)) == [ReplicaStatus.STARTING]

    await until(seen)
    loaded.set()
    await constructing
    worker = Worker(demo_model, family, cell, store, "r1", start_s=3.25)
    serving = asyncio.create_task(worker.run())

    async def ready() -> bool:
        return statuses(await state(queue)) == [ReplicaStatus.IDLE]

    await until(ready)
    await upkeep.tidy()
    pool = await state(queue)
    assert (pool.starts.ready, pool.starts.failed, pool.starts.latest_s) == (1, 0, (3.25,))
    assert pool.replicas[0].age_s >= 3.2
    # It says so once, however often it announces itself.
    assert (await ended(queue, await submit(queue))).state is State.COMPLETED
    await worker.drain(30)
    serving.cancel()
    pool = await state(queue)
    assert (pool.starts.ready, pool.replicas) == (1, [])


async def test_a_constructor_that_raises_is_a_failed_start(
    settings: StackSettings, queue: JobQueue, cell: Cell
) -> None:
    def construct() -> None:
        with starting(settings, POOL, "r1"):
            raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        await asyncio.to_thread(construct)
    pool = await state(queue)
    assert pool.replicas == []
    assert (pool.starts.failed, pool.starts.failures, pool.starts.error) == (1, 1, "OSError")


async def test_a_replica_that_is_killed_while_it_starts_is_a_failed_start(
    settings: StackSettings, queue: JobQueue, cell: Cell, upkeep: Upkeep, clock: Clock
) -> None:
    script = (
        "import time\n"
        "from deployments.settings import StackSettings\n"
        "from deployments.starting import starting\n"
        f"with starting(StackSettings.load(), {POOL!r}, 'r1'):\n"
        "    time.sleep(600)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script),
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **settings.environment()},
    )
    try:

        async def seen() -> bool:
            return statuses(await state(queue)) == [ReplicaStatus.STARTING]

        await until(seen)
        await upkeep.tidy()
        assert (await state(queue)).starts.failed == 0
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    clock.jump(11)
    await upkeep.tidy()
    pool = await state(queue)
    assert pool.replicas == []
    assert (pool.starts.failed, pool.starts.error) == (1, "silent")


async def test_a_redis_that_is_away_neither_delays_nor_fails_a_start() -> None:
    away = StackSettings(redis_url=SecretStr("redis://127.0.0.1:1"))
    done: list[bool] = []

    def construct() -> None:
        with starting(away, POOL, "r1"):
            done.append(True)

    await asyncio.to_thread(construct)
    assert done == [True]

    def fail() -> None:
        with starting(away, POOL, "r1"):
            raise MemoryError

    with pytest.raises(MemoryError):
        await asyncio.to_thread(fail)


async def test_a_cell_of_another_version_is_left_alone(
    settings: StackSettings, queue: JobQueue, cell: Cell
) -> None:
    await cell.redis.set(cell.key("schema"), "0")
    with starting(settings, POOL, "r1"):
        pass
    assert (await state(queue)).replicas == []


# Draining.


class Hanging:
    """The real family. Steps that so many jobs share do not come back until they are told to."""

    def __init__(self, family: Family, jobs: int = 1) -> None:
        self._family = family
        self._jobs = jobs
        self.hangs = threading.Event()
        self.let_go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def step(self, batch: Sequence[Denoising]) -> None:
        if len(batch) >= self._jobs:
            self.hangs.set()
            self.let_go.wait()
        self._family.step(batch)


@asynccontextmanager
async def running(
    model: Model, family: Any, cell: Cell, store: ArtifactStore
) -> AsyncIterator[Worker]:
    worker = Worker(model, family, cell, store, "r1", JobSettings(lease_s_min=30))
    serving = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.drain(30)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_drained_replica_says_so_first_and_takes_nothing_more(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    hanging = Hanging(family)
    model = demo_model.model_copy(update={"placement": Placement(slots=4)})
    async with running(model, hanging, cell, store) as worker:
        job = await submit(queue)

        async def busy() -> bool:
            return statuses(await state(queue)) == [ReplicaStatus.BUSY]

        await until(busy)
        assert await asyncio.to_thread(hanging.hangs.wait, 60)
        draining = asyncio.create_task(worker.drain(30))

        async def said() -> bool:
            return statuses(await state(queue)) == [ReplicaStatus.DRAINING]

        await until(said)
        other = await submit(queue)  # it has free slots, and hears of it
        await asyncio.sleep(1.5)
        assert not draining.done()
        assert (await queue.get(other.id, user="ann")).state is State.QUEUED
        assert statuses(await state(queue)) == [ReplicaStatus.DRAINING]
        hanging.let_go.set()
        await draining
    pool = await state(queue)
    assert (pool.replicas, pool.queued, pool.in_progress) == ([], 2, 0)
    assert (await queue.get(job.id, user="ann")).attempts == 0


async def test_jobs_leave_after_the_step_that_the_drain_finds_them_in(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="deployments")
    # Given two jobs amid a step that they share
    hanging = Hanging(family, jobs=2)
    placement, batch = Placement(slots=3), BatchPolicy(rows=4)
    model = demo_model.model_copy(update={"placement": placement, "batch": batch})
    async with running(model, hanging, cell, store) as worker:
        jobs = [await submit(queue, steps=2000), await submit(queue, steps=2000)]
        assert await asyncio.to_thread(hanging.hangs.wait, 60)
        # And a Redis that is slow to say whether there is another
        asked, answered = asyncio.Event(), asyncio.Event()

        async def lease(*_: object) -> None:
            asked.set()
            await answered.wait()

        monkeypatch.setattr(Leases, "lease", lease)
        await asked.wait()
        # When the replica drains
        draining = asyncio.create_task(worker.drain(30))

        async def said() -> bool:
            return statuses(await state(queue)) == [ReplicaStatus.DRAINING]

        await until(said)
        hanging.let_go.set()

        # Then both are handed back before it knows
        async def handed_back() -> bool:
            return (await state(queue)).queued == 2

        await until(handed_back)
        assert not draining.done()
        answered.set()
        await draining
    # And neither has made another step, or will make one again
    saved = [(await queue.get(job.id, user="ann")).checkpoint_step for job in jobs]
    yielded = r"yielded at step (\d+) after .*, 1 of its steps made in the drain"
    messages = [record.message for record in caplog.records]
    assert "drains, with 2 jobs in the engine" in messages
    left = filter(None, (re.fullmatch(yielded, message) for message in messages))
    assert sorted(int(each[1]) for each in left) == sorted(saved)
    assert (await state(queue)).steps == {}


# What its engine did.


async def test_steps_forwards_and_rows_are_counted_as_they_were_made(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    hanging = Hanging(family)
    batch = BatchPolicy(rows=8)
    model = demo_model.model_copy(update={"placement": Placement(slots=2), "batch": batch})
    async with running(model, hanging, cell, store) as worker:
        # Two that run in step from their second on; each has two rows.
        jobs = [await submit(queue, steps=4), await submit(queue, steps=4)]

        async def both() -> bool:
            return (await state(queue)).in_progress == 2

        await until(both)
        assert worker.counts.runs == 2
        hanging.let_go.set()
        for job in jobs:
            assert (await ended(queue, job)).state is State.COMPLETED
        counts = worker.counts
    assert counts.steps == 8
    assert 4 <= counts.forwards <= 8
    assert counts.rows == 2 * counts.steps
    assert counts.rows_capacity == 8 * counts.forwards
    assert counts.step_s > 0
    # Each saved its last latents.
    assert counts.checkpoints >= 2
    assert counts.checkpoint_bytes >= 1000
    assert counts.runs == 0
    # One that made its steps, all of them once, has none to make again.
    assert (await state(queue)).steps == {}
