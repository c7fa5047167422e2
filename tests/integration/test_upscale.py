"""``upscale: 2`` in a worker as it runs in a replica: real engine, Redis, store and Triton."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from deployments.worker import Worker
from quota.ledger import Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import (
    Cell,
    CostStore,
    Job,
    JobQueue,
    JobSettings,
    Limits,
    Phase,
    State,
    Wish,
)
from serving.media import ArtifactStore, open_store
from serving.models.family import Family
from serving.models.load import load_family
from serving.models.triton_upscaler import TritonUpscaler
from serving.plan.catalog import Model
from serving.plan.classes import ServiceTier
from serving.plan.costs import upscaled_pixels
from serving.plan.price import price
from tests.jobs import ended, spec, submit, until
from tests.triton import TritonServer, triton

pytestmark = pytest.mark.asyncio

LEASE_S = 2
BOUGHT = 100_000
TWICE: dict[str, Any] = {"upscale": 2, "width": 192, "height": 192}
LONG: dict[str, Any] = {**TWICE, "seconds": 4, "fps": 30, "steps": 3, "guidance_scale": 1.0}
"""Long enough to be interrupted among its 120 frames."""


@pytest.fixture(scope="module")
def family(demo_model: Model, models_dir: Path) -> Iterator[Family]:
    threads = torch.get_num_threads()
    # Two processes of tests with a thread for each core wait for each other more than they compute.
    torch.set_num_threads(1)
    yield load_family(demo_model, models_dir)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with triton(tmp_path_factory.mktemp("triton"), "upscale") as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "artifacts").as_uri())


def upscaling(entry: Model, process: TritonServer, **seat: Any) -> Model:
    assert entry.upscaler is not None
    at = entry.upscaler.model_copy(update={"url": process.url, "frames": 2, **seat})
    return entry.model_copy(update={"upscaler": at})


@asynccontextmanager
async def running(
    model: Model, family: Family, cell: Cell, store: ArtifactStore
) -> AsyncIterator[Worker]:
    limits = JobSettings(lease_s_min=LEASE_S)
    assert model.upscaler is not None
    upscaler = TritonUpscaler(model.upscaler) if model.upscales else None
    worker = Worker(model, family, cell, store, "r1", limits, upscaler=upscaler)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.drain(30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if upscaler is not None:
            await upscaler.close()


async def content(store: ArtifactStore, job: Job, variant: str = "video") -> bytes:
    return b"".join([part async for part in store.read(job.result["artifacts"][variant]["key"])])


async def bought(queue: JobQueue, cell: Cell, model: Model, **asked: Any) -> Job:
    """A job that is paid from credits, of which its user has bought some."""
    await RedisLedger(cell).grant("ann", ref="pay_1", amount=BOUGHT, kind=Kind.PURCHASE)
    nothing_free = Limits("free", generations=0, beyond="credits", days_ms=days_ms())
    cost = price(model, spec(**asked))
    return await submit(
        queue, limits=nothing_free, wish=Wish(ServiceTier.PRIORITY), price=cost, **asked
    )


def days_ms() -> list[int]:
    day_ms = 24 * 3600 * 1000
    midnight_ms = int(time.time() * 1000) // day_ms * day_ms
    return [midnight_ms + day_ms * days for days in (-1, 0, 1, 2)]


async def assert_paid_once(cell: Cell, model: Model, job: Job) -> None:
    ledger = RedisLedger(cell)
    balance = await ledger.balance("ann")
    assert (balance.spendable, balance.held) == (BOUGHT - price(model, job.clip), 0)
    assert (await verify(cell)).differences == []


async def among_its_frames(process: TritonServer, queue: JobQueue, job: Job) -> None:
    """Once some of them are upscaled, and some are not."""
    before = await asyncio.to_thread(process.metric, "nv_inference_request_success", "upscale")

    async def some_are() -> bool:
        assert not (await queue.get(job.id, user="ann")).terminal
        done = await asyncio.to_thread(process.metric, "nv_inference_request_success", "upscale")
        return done >= before + 5

    await until(some_are)


async def test_a_clip_has_twice_the_width_and_height_and_all_its_frames(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    process: TritonServer,
    tmp_path: Path,
) -> None:
    model = upscaling(demo_model, process)
    async with running(model, family, cell, store) as worker:
        plain = await ended(queue, await submit(queue))
        twice = await ended(queue, await submit(queue, **TWICE))
        # A size that is rendered smaller is upscaled from what was rendered.
        scaled = await ended(queue, await submit(queue, **{**TWICE, "width": 384, "height": 216}))

        async def learned() -> bool:
            known = (await CostStore(cell).load(model)).learned
            return any("upscale" in costs.accuracy() for costs in known.values())

        await until(learned)
        expected = twice.result["stages"]["upscale_s"]
        assert worker.costs.upscale_s(upscaled_pixels(twice.clip)) < 20 * expected
    for job, size in ((plain, (96, 96)), (twice, (192, 192)), (scaled, (384, 216))):
        assert job.state is State.COMPLETED, job.error
        file = tmp_path / "clip.mp4"
        file.write_bytes(await content(store, job))
        with av.open(file) as clip:
            frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert len(frames) == 8
        assert {(frame.shape[1], frame.shape[0]) for frame in frames} == {size}
    with av.open(str(_file(tmp_path, await content(store, twice, "thumbnail")))) as still:
        assert (still.streams.video[0].width, still.streams.video[0].height) == (192, 192)
    assert "upscale_s" not in plain.result["stages"]


def _file(folder: Path, data: bytes) -> Path:
    file = folder / "still.jpg"
    file.write_bytes(data)
    return file


async def test_a_server_that_is_killed_among_the_frames_is_waited_for(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    process: TritonServer,
) -> None:
    model = upscaling(demo_model, process)
    async with running(model, family, cell, store) as worker:
        alone = await content(store, await ended(queue, await submit(queue, **LONG)))
        steps = worker.counts.steps
        job = await bought(queue, cell, model, **LONG)
        await among_its_frames(process, queue, job)
        await asyncio.to_thread(process.kill)
        await asyncio.sleep(2 * LEASE_S)
        waits = await queue.get(job.id, user="ann")
        assert (waits.state, waits.phase) == (State.IN_PROGRESS, Phase.UPSCALE)
        other = await ended(queue, await submit(queue, user="bob"))
        assert other.state is State.COMPLETED, "others go on meanwhile"
        steps += other.spec.steps
        await asyncio.to_thread(process.start)
        done = await ended(queue, job)
        assert (done.state, done.attempts) == (State.COMPLETED, 1), done.error
        assert worker.counts.steps == steps + job.spec.steps, "no step was made again"
    assert await content(store, done) == alone
    await assert_paid_once(cell, model, done)


async def test_a_clip_whose_server_stays_away_goes_on_elsewhere_from_its_final_latents(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    process: TritonServer,
) -> None:
    model = upscaling(demo_model, process, patience_s=0)
    async with running(model, family, cell, store) as worker:
        alone = await content(store, await ended(queue, await submit(queue, **LONG)))
        job = await bought(queue, cell, model, **LONG)
        await among_its_frames(process, queue, job)
        await asyncio.to_thread(process.kill)

        async def came_back() -> bool:
            return (await queue.pools(["demo-wan"]))["demo-wan"].counts.get("resumed", 0) > 0

        await until(came_back)
        assert worker.counts.steps == 2 * job.spec.steps
    back = await queue.get(job.id, user="ann")
    assert (back.state, back.checkpoint_step) == (State.QUEUED, job.spec.steps)
    await asyncio.to_thread(process.start)
    async with running(model, family, cell, store) as another:
        done = await ended(queue, job)
        assert (done.state, done.attempts) == (State.COMPLETED, 1), done.error
        assert another.counts.steps == 0, "no step was made again"
    assert await content(store, done) == alone
    pool = (await queue.pools(["demo-wan"]))["demo-wan"]
    assert sum(pool.steps.values()) == 0
    await assert_paid_once(cell, model, done)


@pytest.mark.parametrize("lost", [False, True], ids=["there", "lost"])
async def test_a_replica_that_leaves_waits_for_no_more_frames(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    process: TritonServer,
    lost: bool,
) -> None:
    async with running(upscaling(demo_model, process, frames=1), family, cell, store):
        job = await submit(queue, **LONG)
        await among_its_frames(process, queue, job)
        if lost:
            await asyncio.to_thread(process.kill)
    back = await queue.get(job.id, user="ann")
    assert (back.state, back.checkpoint_step) == (State.QUEUED, job.spec.steps)
    if lost:
        await asyncio.to_thread(process.start)


async def test_a_cancelled_clip_is_cancelled_among_its_frames(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    process: TritonServer,
) -> None:
    model = upscaling(demo_model, process, frames=1)
    async with running(model, family, cell, store):
        job = await bought(queue, cell, model, **{**LONG, "seconds": 12})
        await among_its_frames(process, queue, job)
        await asyncio.to_thread(process.kill)
        await queue.cancel(job.id, user="ann")
        other = await ended(queue, await submit(queue, user="bob"))
        assert other.state is State.COMPLETED
        await asyncio.to_thread(process.start)
    left = await queue.get(job.id, user="ann")
    assert left.state is State.CANCELLED
    # Its checkpoint and preview are collected as anybody's are.
    assert [info.key async for info in store.list(f"{job.id}/{left.fence}")] == []
    balance = await RedisLedger(cell).balance("ann")
    assert (balance.spendable, balance.held) == (BOUGHT, 0)


async def test_an_upscaler_that_is_another_kind_of_model_fails_the_clip_and_says_so(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    tmp_path: Path,
) -> None:
    with triton(tmp_path / "triton", "classify") as server:
        model = upscaling(demo_model, server, model="classify")
        async with running(model, family, cell, store):
            failed = await ended(queue, await submit(queue, **TWICE))
    assert (failed.state, failed.error["code"]) == (State.FAILED, "model_failed")
    assert "it has no output UPSCALED" in failed.error["message"]


async def test_a_replica_without_an_upscaler_makes_no_step_for_such_a_clip(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    async with running(demo_model, family, cell, store) as worker:
        failed = await ended(queue, await submit(queue, **TWICE))
        assert worker.counts.steps == 0
    assert (failed.state, failed.error["code"]) == (State.FAILED, "model_failed")
    assert "without 'upscale'" in failed.error["message"]
