"""A worker as it runs in a replica: real Redis, real store, the real demo pipeline."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import pytest
import pytest_asyncio

from deployments.worker import Worker
from serving.jobs import Cell, Job, JobQueue, JobSettings, Phase, State
from serving.media import ArtifactStore, open_store
from serving.models.family import Denoising, Family, Frames
from serving.models.load import load_family
from serving.plan.catalog import BatchPolicy, Model, Placement
from tests.jobs import ended, submit, until

pytestmark = pytest.mark.asyncio

LEASE_S = 1


@pytest.fixture(scope="module")
def family(demo_model: Model, models_dir: Path) -> Family:
    return load_family(demo_model, models_dir)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "artifacts").as_uri())


@asynccontextmanager
async def running(
    model: Model, family: Family, cell: Cell, store: ArtifactStore
) -> AsyncIterator[Worker]:
    worker = Worker(model, family, cell, store, "r1", JobSettings(lease_s_min=LEASE_S))
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.drain(30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest_asyncio.fixture
async def worker(
    demo_model: Model, family: Family, cell: Cell, store: ArtifactStore
) -> AsyncIterator[Worker]:
    async with running(demo_model, family, cell, store) as worker:
        yield worker


async def content(store: ArtifactStore, job: Job, variant: str = "video") -> bytes:
    return b"".join([part async for part in store.read(job.result["artifacts"][variant]["key"])])


async def test_a_job_becomes_a_stored_clip(
    worker: Worker, queue: JobQueue, store: ArtifactStore, tmp_path: Path
) -> None:
    done = await ended(queue, await submit(queue, width=128, height=72))
    assert done.state is State.COMPLETED
    file = tmp_path / "clip.mp4"
    file.write_bytes(await content(store, done))
    with av.open(file) as clip:
        video = clip.streams.video[0]
        assert (video.width, video.height, video.frames) == (128, 72, 8)
    for variant in ("thumbnail", "spritesheet"):
        assert (await content(store, done, variant)).startswith(b"\xff\xd8")
    assert set(done.result["stages"]) == {"encode_s", "denoise_s", "decode_s", "store_s"}


async def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    worker: Worker, queue: JobQueue, store: ArtifactStore
) -> None:
    jobs = [await submit(queue, seed=seed) for seed in (5, 5, 6)]
    first, same, other = [await content(store, await ended(queue, job)) for job in jobs]
    assert first == same
    assert first != other


async def test_a_cancelled_run_stops_at_the_next_step_and_the_next_job_runs(
    worker: Worker, queue: JobQueue, store: ArtifactStore
) -> None:
    long = await submit(queue, steps=2000)

    async def stepping() -> bool:
        return (await queue.get(long.id, user="ann")).step > 0

    await until(stepping)
    await queue.cancel(long.id, user="ann")
    step = (await queue.get(long.id, user="ann")).step
    assert (await ended(queue, await submit(queue))).state is State.COMPLETED
    stopped = await queue.get(long.id, user="ann")
    assert (stopped.state, stopped.step) == (State.CANCELLED, step)
    assert [info.key async for info in store.list(long.id)] == []


async def test_a_drained_worker_hands_its_job_back_and_another_finishes_it(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    job = await submit(queue, steps=100)

    async def stepping() -> bool:
        return (await queue.get(job.id, user="ann")).step > 0

    async with running(demo_model, family, cell, store):
        await until(stepping)
    assert (await queue.get(job.id, user="ann")).state is State.QUEUED
    async with running(demo_model, family, cell, store):
        done = await ended(queue, job)
    assert (done.state, done.attempts) == (State.COMPLETED, 1)


class Broken:
    """The real family, except that prompts which say so break it."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def step(self, batch: Sequence[Denoising]) -> None:
        if batch[0].spec.prompt == "raise":
            raise RuntimeError("out of luck")
        self._family.step(batch)
        if batch[0].spec.prompt == "nan":
            batch[0].latents = batch[0].latents * float("nan")

    def decode(self, run: Denoising) -> Iterator[Frames]:
        yield from self._family.decode(run)


@pytest.mark.parametrize(("prompt", "code"), [("raise", "model_failed"), ("nan", "invalid_output")])
async def test_a_poison_request_fails_alone_with_a_reason(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    prompt: str,
    code: str,
) -> None:
    async with running(demo_model, Broken(family), cell, store) as worker:
        failed = await ended(queue, await submit(queue, prompt=prompt))
        assert (failed.state, failed.error["code"]) == (State.FAILED, code)
        assert len(failed.error["message"]) > 20
        assert (await ended(queue, await submit(queue))).state is State.COMPLETED
        worker.check()


async def test_a_store_that_is_away_is_waited_for(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, tmp_path: Path
) -> None:
    folder = tmp_path / "artifacts"
    store = open_store(folder.as_uri())
    folder.rmdir()
    folder.write_text("a file where the folder was")
    async with running(demo_model, family, cell, store):
        job = await submit(queue)

        async def storing() -> bool:
            return (await queue.get(job.id, user="ann")).phase is Phase.STORE

        await until(storing)
        await asyncio.sleep(2 * LEASE_S)
        assert await storing(), "it keeps its lease, although there is nothing to see"
        folder.unlink()
        folder.mkdir()
        done = await ended(queue, job)
    assert (done.state, done.attempts) == (State.COMPLETED, 1)
    assert await content(store, done)


async def test_files_that_cannot_be_opened_cost_the_pool_no_slot(
    worker: Worker, queue: JobQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    failed = await ended(queue, await submit(queue))
    assert (failed.state, failed.error["code"]) == (State.FAILED, "delivery_failed")
    monkeypatch.undo()
    assert (await ended(queue, await submit(queue))).state is State.COMPLETED


class Hanging(Broken):
    """Steps that do not come back until they are told to."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.release = threading.Event()

    def step(self, batch: Sequence[Denoising]) -> None:
        self.release.wait()
        super().step(batch)


async def test_a_hung_engine_makes_its_worker_unhealthy(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    hanging = Hanging(family)
    async with running(demo_model, hanging, cell, store) as worker:
        await submit(queue)

        async def unhealthy() -> bool:
            try:
                worker.check()
            except RuntimeError as error:
                return "hangs" in str(error)
            return False

        await until(unhealthy)
        hanging.release.set()


async def test_jobs_that_share_a_batch_give_the_bytes_they_give_alone(
    demo_model: Model,
    models_dir: Path,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
) -> None:
    model = demo_model.model_copy(
        update={
            "placement": Placement(slots=4),
            "batch": BatchPolicy(rows=8),
        }
    )
    batching = load_family(model, models_dir)
    # Short ones that join and leave while a long one runs, another shape among them.
    asked: list[dict[str, Any]] = [
        {"seed": 1, "steps": 12},
        {"seed": 2, "steps": 3, "guidance_scale": 1.0},
        {"seed": 3, "steps": 5, "width": 128, "render_width": 128},
        {"seed": 4, "steps": 4},
    ]
    clips: dict[str, list[bytes]] = {}
    for name, together in (("alone", 1), ("together", 4)):
        clips[name] = []
        async with running(model, batching, cell, store):
            for start in range(0, len(asked), together):
                jobs = [await submit(queue, **each) for each in asked[start : start + together]]
                clips[name] += [await content(store, await ended(queue, job)) for job in jobs]
    assert clips["together"] == clips["alone"]


async def test_a_job_that_waits_for_its_turn_keeps_its_lease(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    model = demo_model.model_copy(update={"placement": Placement(slots=2)})
    slow = Slow(family)
    async with running(model, slow, cell, store):
        first = await submit(queue, steps=20)
        second = await submit(queue, steps=2)
        for job in (first, second):
            done = await ended(queue, job)
            assert (done.state, done.attempts) == (State.COMPLETED, 1)


class Slow(Broken):
    """Twenty of its steps outlast the shortest lease four times."""

    def step(self, batch: Sequence[Denoising]) -> None:
        time.sleep(0.2)
        super().step(batch)
