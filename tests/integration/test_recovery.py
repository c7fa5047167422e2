"""Worker processes that are killed, stopped, hung and drained, against a real Redis and store."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from serving.jobs import Cell, Job, JobQueue, JobSettings, State, Upkeep
from serving.media import ArtifactStore, open_store
from serving.plan.clip import ClipSpec
from tests.jobs import ended, submit, until

pytestmark = pytest.mark.asyncio

ZYGOTE = Path(__file__).with_name("worker_zygote.py")
STEPS = 5
_names = itertools.count()


class Workers:
    """Worker processes on one Redis and one store."""

    def __init__(
        self, zygote: subprocess.Popen[str], redis_url: str, store_url: str, models_dir: Path
    ) -> None:
        self._zygote = zygote
        self._order = {
            "redis_url": redis_url,
            "store_url": store_url,
            "models_dir": str(models_dir),
            "every_steps": 1,
        }
        self.processes: list[psutil.Process] = []

    def start(self, every_steps: int | None = 1, **faults: Any) -> psutil.Process:
        order = {**self._order, "faults": faults, "replica": f"r{next(_names)}"}
        order["every_steps"] = every_steps
        assert self._zygote.stdin
        assert self._zygote.stdout
        self._zygote.stdin.write(json.dumps(order) + "\n")
        self._zygote.stdin.flush()
        process = psutil.Process(int(self._zygote.stdout.readline()))
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def zygote() -> Iterator[subprocess.Popen[str]]:
    # One thread each: there are several of them, and forks of a thread pool do not work.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.worker_zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ZYGOTE.parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.communicate()


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return (tmp_path / "artifacts").as_uri()


@pytest.fixture
def store(store_url: str) -> ArtifactStore:
    return open_store(store_url)


@pytest_asyncio.fixture
async def workers(
    zygote: subprocess.Popen[str],
    redis_server: RedisServer,
    store_url: str,
    models_dir: Path,
    upkeep: Upkeep,
) -> AsyncIterator[Workers]:
    async def keep_house() -> None:
        while True:
            with suppress(Exception):
                await upkeep.tidy()
            await asyncio.sleep(0.1)

    house = asyncio.create_task(keep_house())
    workers = Workers(zygote, redis_server.url, store_url, models_dir)
    yield workers
    workers.stop()
    house.cancel()


async def reached(queue: JobQueue, job: Job, step: int) -> None:
    async def there() -> bool:
        return (await queue.get(job.id, user=job.user)).step >= step

    await until(there)


async def died(process: psutil.Process) -> None:
    async def dead() -> bool:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    await until(dead)


async def clip(store: ArtifactStore, job: Job) -> bytes:
    assert job.state is State.COMPLETED, job.error
    return b"".join([part async for part in store.read(job.result["artifacts"]["video"]["key"])])


async def counts(queue: JobQueue) -> dict[str, int]:
    return dict((await queue.pools(["demo-wan"]))["demo-wan"].counts)


_undisturbed: dict[ClipSpec, bytes] = {}


async def undisturbed(
    workers: Workers, queue: JobQueue, store: ArtifactStore, **changes: Any
) -> bytes:
    """What the same request gives when nothing happens to it."""
    job = await submit(queue, **{"steps": STEPS, **changes})
    if job.spec not in _undisturbed:
        process = workers.start()
        _undisturbed[job.clip] = await clip(store, await ended(queue, job))
        process.terminate()
        await died(process)
    else:
        await queue.cancel(job.id, user=job.user)
    return _undisturbed[job.clip]


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
@pytest.mark.parametrize("every_steps", [1, 2])
@pytest.mark.parametrize("point", [*(f"step:{k}" for k in range(1, STEPS + 1)), "decode", "store"])
async def test_a_worker_killed_at_any_point_costs_nothing_but_the_steps_since_its_checkpoint(
    workers: Workers, queue: JobQueue, store: ArtifactStore, point: str, every_steps: int
) -> None:
    expected = await undisturbed(workers, queue, store)
    job = await submit(queue, steps=STEPS)
    # Steps take seconds where it matters, so a checkpoint is stored before the next is done.
    await died(workers.start(kill=point, every_steps=every_steps, pause_s=0.3))
    at_death = await queue.get(job.id, user="ann")
    done_steps = int(point.removeprefix("step:")) if point.startswith("step") else STEPS
    assert done_steps - at_death.checkpoint_step <= every_steps
    if done_steps == STEPS and not point.startswith("step"):
        assert at_death.checkpoint_step == STEPS, "final latents are safe before they are decoded"
    workers.start()
    done = await ended(queue, job)
    assert await clip(store, done) == expected
    assert done.attempts == 2
    counted = await counts(queue)
    assert counted["lease_lost"] == 1
    assert counted.get("resumed", 0) == (1 if at_death.checkpoint else 0)
    # Nothing is left of the first attempt, nor of the checkpoints.
    left = {info.key async for info in store.list(job.id)}
    assert left == {artifact["key"] for artifact in done.result["artifacts"].values()}


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_worker_that_was_stopped_finds_its_fence_stale_and_goes_on_serving(
    workers: Workers, queue: JobQueue, store: ArtifactStore
) -> None:
    expected = await undisturbed(workers, queue, store)
    job = await submit(queue, steps=STEPS)
    zombie = workers.start(step_s=0.2)
    await reached(queue, job, 2)
    zombie.suspend()
    heir = workers.start()
    done = await ended(queue, job)
    assert await clip(store, done) == expected
    assert done.attempts == 2
    heir.terminate()
    await died(heir)
    zombie.resume()
    # It serves the next job, after it has given up the one it had.
    after = await ended(queue, await submit(queue, steps=1))
    assert after.state is State.COMPLETED
    assert await queue.get(job.id, user="ann") == done
    assert await clip(store, done) == expected
    files = {info.key async for info in store.list(job.id)}
    assert files == {artifact["key"] for artifact in done.result["artifacts"].values()}


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_slow_step_does_not_lose_its_job(workers: Workers, queue: JobQueue) -> None:
    # Forty times its estimate, and still within the shortest lease.
    job = await submit(queue, steps=3)
    workers.start(step_s=0.8)
    workers.start(step_s=0.8)
    done = await ended(queue, job)
    assert (done.state, done.attempts) == (State.COMPLETED, 1)


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_hung_engine_loses_its_job_to_another_replica(
    workers: Workers, queue: JobQueue
) -> None:
    job = await submit(queue, steps=3)
    workers.start(step_s=3600)
    await reached(queue, job, 0)

    async def leased() -> bool:
        return (await queue.get(job.id, user="ann")).state is State.IN_PROGRESS

    await until(leased)
    workers.start()
    done = await ended(queue, job)
    assert (done.state, done.attempts) == (State.COMPLETED, 2)


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_drained_worker_hands_back_its_job_within_a_step(
    workers: Workers, queue: JobQueue, store: ArtifactStore
) -> None:
    expected = await undisturbed(workers, queue, store)
    job = await submit(queue, steps=STEPS)
    process = workers.start(every_steps=None, step_s=0.2)
    await reached(queue, job, 2)
    step = (await queue.get(job.id, user="ann")).step
    process.terminate()
    await died(process)
    handed_back = await queue.get(job.id, user="ann")
    assert (handed_back.state, handed_back.attempts) == (State.QUEUED, 0)
    # The step it was in, and at most one that had just begun.
    assert step <= handed_back.checkpoint_step <= step + 2
    assert handed_back.checkpoint_step < STEPS
    workers.start()
    done = await ended(queue, job)
    assert await clip(store, done) == expected
    assert (done.attempts, await counts(queue)) == (1, {"yielded": 1, "resumed": 1})


LONG: dict[str, Any] = {"steps": 60, "est_device_ms": 60_000}
"""With steps of 0.1 s, long enough that a short job cannot wait for its end."""


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_short_job_runs_in_the_place_of_a_long_one_which_goes_on_from_memory(
    workers: Workers, queue: JobQueue, store: ArtifactStore
) -> None:
    expected = await undisturbed(workers, queue, store, **LONG)
    long = await submit(queue, **LONG)
    workers.start(every_steps=None, step_s=0.1)
    await reached(queue, long, 4)
    short = await ended(queue, await submit(queue, steps=2))
    assert short.state is State.COMPLETED
    waiting = await queue.get(long.id, user="ann")
    assert not waiting.terminal
    assert 4 <= waiting.checkpoint_step < 60
    done = await ended(queue, long)
    assert await clip(store, done) == expected
    assert (done.attempts, done.preempted, short.attempts) == (1, 1, 1)
    assert await counts(queue) == {
        "preempted": 1,
        "yielded": 1,
        "resumed": 1,
        "resumed_from_memory": 1,
    }


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_worker_killed_between_the_swap_and_the_yield_loses_neither_job(
    workers: Workers, queue: JobQueue, store: ArtifactStore
) -> None:
    expected = await undisturbed(workers, queue, store, **LONG)
    long = await submit(queue, **LONG)
    process = workers.start(step_s=0.1, kill="swap")
    await reached(queue, long, 4)
    short = await submit(queue, steps=2)
    await died(process)
    for job in (short, long):
        assert (await queue.get(job.id, user="ann")).state is State.IN_PROGRESS
    workers.start()
    short, long = await ended(queue, short), await ended(queue, long)
    assert short.state is State.COMPLETED
    assert await clip(store, long) == expected
    assert (short.attempts, long.attempts) == (2, 2)
    assert await counts(queue) == {"preempted": 1, "lease_lost": 2, "resumed": 1}


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_job_that_kills_three_workers_is_given_up_and_the_next_runs(
    workers: Workers, queue: JobQueue, store: ArtifactStore
) -> None:
    poison = await submit(queue, steps=STEPS)
    for _ in range(3):
        await died(workers.start(every_steps=None, kill="step:1"))
    healthy = await submit(queue, steps=1)
    workers.start()
    assert (await ended(queue, healthy)).state is State.COMPLETED
    failed = await ended(queue, poison)
    assert (failed.state, failed.error["code"], failed.attempts) == (
        State.FAILED,
        "replica_lost",
        3,
    )


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
@pytest.mark.parametrize("harm", ["corrupt", "foreign", "missing"])
async def test_a_checkpoint_that_cannot_be_trusted_is_counted_and_the_job_starts_over(
    workers: Workers, queue: JobQueue, store: ArtifactStore, harm: str, tmp_path: Path
) -> None:
    expected = await undisturbed(workers, queue, store)
    job = await submit(queue, steps=STEPS)
    await died(workers.start(kill="step:4", pause_s=0.5))
    key = (await queue.get(job.id, user="ann")).checkpoint
    file = tmp_path / "artifacts" / key
    data = bytearray(file.read_bytes())
    match harm:
        case "corrupt":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "foreign":
            data[6] += 1  # the format's version
            file.write_bytes(data)
        case "missing":
            file.unlink()
    workers.start()
    done = await ended(queue, job)
    assert await clip(store, done) == expected
    counted = await counts(queue)
    assert counted[f"checkpoint_{harm}"] == 1
    assert "resumed" not in counted


async def test_a_request_that_kills_replicas_takes_no_neighbour_with_it(
    queue: JobQueue, workers: Workers
) -> None:
    jobs = [
        await submit(queue, prompt=prompt, seed=seed, steps=30)
        for seed, prompt in enumerate(["a cat", "poison", "a dog"])
    ]
    while not all([(await queue.get(job.id, user="ann")).terminal for job in jobs]):
        await died_or(queue, jobs, workers.start(kill="poison"))
    cat, poison, dog = [await queue.get(job.id, user="ann") for job in jobs]
    assert (poison.state, poison.attempts) == (State.FAILED, 3)
    assert poison.error["code"] == "replica_lost"
    for neighbour in (cat, dog):
        assert neighbour.state is State.COMPLETED


async def died_or(queue: JobQueue, jobs: list[Job], process: psutil.Process) -> None:
    """Until the worker is dead or every job has ended."""

    async def over() -> bool:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        return all([(await queue.get(job.id, user="ann")).terminal for job in jobs])

    await until(over)


async def test_redis_away_for_twenty_seconds_stops_nobody(
    zygote: subprocess.Popen[str],
    store_url: str,
    store: ArtifactStore,
    models_dir: Path,
    tmp_path: Path,
) -> None:
    server = RedisServer(tmp_path / "redis")
    workers = Workers(zygote, server.start(), store_url, models_dir)
    client: Redis = Redis.from_url(server.url, decode_responses=True)
    queue, upkeep = JobQueue(Cell(client)), Upkeep(Cell(client), JobSettings(lease_s_min=1))
    try:
        await Cell(client).check_schema()
        await upkeep.tidy()
        job = await submit(queue, steps=20)
        waiting = await submit(queue, steps=1, seed=2)
        workers.start(step_s=0.2)
        await reached(queue, job, 3)
        os.kill(server.pid, signal.SIGKILL)
        # The run ends while nobody can be told.
        await asyncio.sleep(20)
        server.start()
        await client.connection_pool.disconnect()
        restarted = time.monotonic()
        while time.monotonic() - restarted < 1:
            await upkeep.tidy()  # as every ingress replica does
            await asyncio.sleep(0.1)
        done = await ended(queue, job)
        assert (done.state, done.attempts) == (State.COMPLETED, 1)
        assert await counts(queue) == {}
        assert (await ended(queue, waiting)).state is State.COMPLETED
    finally:
        workers.stop()
        await client.aclose()
        server.stop()
