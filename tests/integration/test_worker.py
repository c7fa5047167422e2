"""A worker as it runs in a replica: real Redis, real store, the real demo pipeline."""

from __future__ import annotations

import asyncio
import io
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
import pytest_asyncio
import torch
from PIL import Image

from deployments.housekeeping import collect_garbage
from deployments.worker import Worker
from serving.jobs import Cell, CostStore, Job, JobQueue, JobSettings, Phase, State, Upkeep
from serving.media import ArtifactStore, StoreError, open_store
from serving.models.family import Denoising, Family, Frames
from serving.models.load import load_family
from serving.plan.catalog import BatchPolicy, CostTable, Model, Placement, PreviewPolicy
from serving.plan.costs import CostModel
from tests.jobs import ended, submit, until

pytestmark = pytest.mark.asyncio

LEASE_S = 2


@pytest.fixture(scope="module")
def family(demo_model: Model, models_dir: Path) -> Family:
    return load_family(demo_model, models_dir)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "artifacts").as_uri())


@asynccontextmanager
async def running(
    model: Model,
    family: Family,
    cell: Cell,
    store: ArtifactStore,
    *,
    quantum_s: float = 1,
    lease_s: float = LEASE_S,
) -> AsyncIterator[Worker]:
    limits = JobSettings(lease_s_min=lease_s, quantum_s=quantum_s)
    worker = Worker(model, family, cell, store, "r1", limits)
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


async def test_what_the_prompt_cache_did_is_counted_once_and_outlives_the_replica(
    demo_model: Model, models_dir: Path, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    async def counted() -> dict[str, int]:
        return dict((await queue.pools(["demo-wan"]))["demo-wan"].tallies)

    family = load_family(demo_model, models_dir)
    async with running(demo_model, family, cell, store):
        for seed in range(2):
            await ended(queue, await submit(queue, steps=1, seed=seed))
        expected = {"prompt_cache_hits": 2, "prompt_cache_misses": 2}

        async def reported() -> bool:
            return await counted() == expected

        await until(reported)
        await ended(queue, await submit(queue, steps=1, prompt="another", guidance_scale=1.0))
    assert await counted() == {"prompt_cache_hits": 2, "prompt_cache_misses": 3}


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
        self.let_go = threading.Event()

    def step(self, batch: Sequence[Denoising]) -> None:
        self.let_go.wait()
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
        hanging.let_go.set()


class Lost(Broken):
    """Its device is lost at the first step."""

    def step(self, batch: Sequence[Denoising]) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_worker_whose_engine_is_dead_does_not_wait_for_it(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    limits = JobSettings(lease_s_min=LEASE_S)
    worker = Worker(demo_model, Lost(family), cell, store, "r1", limits)
    serving = asyncio.create_task(worker.run())
    job = await submit(queue)

    async def dead() -> bool:
        try:
            worker.check()
        except RuntimeError as error:
            return "dead" in str(error)
        return False

    await until(dead)
    async with asyncio.timeout(60):
        await worker.drain(600)
    serving.cancel()
    # Its lease runs out, which counts as an attempt.
    assert (await queue.get(job.id, user="ann")).state is State.IN_PROGRESS


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


async def test_a_preempted_job_wastes_no_step_and_gives_the_bytes_it_gives_alone(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    slow = Slow(family)
    model = demo_model.model_copy(update={"placement": Placement(slots=1)})
    asked: dict[str, Any] = {"steps": 40, "est_device_ms": 40_000}
    async with running(demo_model, family, cell, store):
        alone = await content(store, await ended(queue, await submit(queue, **asked)))
    async with running(model, slow, cell, store, quantum_s=0):
        long = await submit(queue, **asked)
        for times in range(2):
            await until(partial(runs, queue, long, step=1, resumed=times))
            short = await ended(queue, await submit(queue, steps=1))
            assert short.state is State.COMPLETED
        # It may stay now, whoever comes.
        await until(partial(runs, queue, long, resumed=2))
        late = await submit(queue, steps=1)
        await until(lambda: runs(queue, long, step=30))
        assert (await queue.get(late.id, user="ann")).state is State.QUEUED
        done = await ended(queue, long)
        assert (await ended(queue, late)).state is State.COMPLETED
    assert (done.preempted, done.attempts) == (2, 1)
    assert await content(store, done) == alone
    assert slow.steps == 40 + 3
    counts = (await queue.pools(["demo-wan"]))["demo-wan"].counts
    assert counts == {"preempted": 2, "yielded": 2, "resumed": 2, "resumed_from_memory": 2}


async def runs(queue: JobQueue, job: Job, *, step: int = 0, resumed: int = 0) -> bool:
    now = await queue.get(job.id, user="ann")
    counts = (await queue.pools(["demo-wan"]))["demo-wan"].counts
    gone_on = counts.get("resumed", 0) >= resumed
    return gone_on and now.phase is Phase.DENOISE and now.step >= step


async def test_a_job_that_waits_for_its_turn_keeps_its_lease(
    demo_model: Model, models_dir: Path, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    batch = BatchPolicy(rows=2)
    model = demo_model.model_copy(update={"placement": Placement(slots=2), "batch": batch})
    slow = Slow(load_family(model, models_dir))
    async with running(model, slow, cell, store, lease_s=Slow.LEASE_S):
        first = await submit(queue, steps=20)
        await until(lambda: runs(queue, first))
        # It ranks before the first, so it is leased beside it; their rows do not fit together.
        second = await submit(queue, steps=20, est_device_ms=500)
        await until(lambda: runs(queue, second))
        assert not (await queue.get(first.id, user="ann")).terminal
        for job in (first, second):
            done = await ended(queue, job)
            assert (done.state, done.attempts) == (State.COMPLETED, 1)


async def test_the_next_estimate_is_what_the_engine_said_the_last_jobs_took(
    demo_model: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    table = {name: 500 * value for name, value in demo_model.cost.model_dump().items()}
    model = demo_model.model_copy(update={"cost": CostTable(**table)})
    costs = CostStore(cell)
    async with running(model, family, cell, store) as worker:
        jobs = [await ended(queue, await submit(queue, steps=12, seed=n)) for n in range(4)]

        async def announced() -> bool:
            return (await costs.load(model)).live == {worker.costs.device}

        await until(announced)
    known = (await costs.load(model)).learned[worker.costs.device]
    found, prior = known.estimate(jobs[0].clip), CostModel(model).estimate(jobs[0].clip)
    stages = [job.result["stages"] for job in jobs]
    for name, seconds in (
        ("encode", [each["encode_s"] for each in stages]),
        ("step", [each["denoise_s"] / 12 for each in stages]),
        ("decode", [each["decode_s"] for each in stages]),
    ):
        estimate = getattr(found, f"{name}_s")
        assert min(seconds) / 2 < estimate < 2 * max(seconds), name
        assert estimate < getattr(prior, f"{name}_s") / 5, "the table was far off"
    assert found.deliver_s > min(each["store_s"] for each in stages) / 2, "and encoding"
    counted = {stage: each.predictions for stage, each in known.accuracy().items()}
    # The first step of a shape in a process is left out.
    assert counted == {"encode": 4, "step": 4 * 12 - 1, "decode": 4, "deliver": 4}


async def test_a_step_is_learned_with_the_rows_its_forward_carried(
    demo_model: Model, models_dir: Path, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    model = demo_model.model_copy(
        update={
            "placement": Placement(slots=2),
            "batch": BatchPolicy(rows=4, reproducible="fast"),
        }
    )
    async with running(model, load_family(model, models_dir), cell, store) as worker:
        for together in (1, 2):
            jobs = [await submit(queue, steps=40, seed=seed) for seed in range(together)]
            for job in jobs:
                await ended(queue, job)
    tokens = jobs[0].clip.tokens(model)
    assert set(worker.costs.learned_steps()) == {(tokens, 2), (tokens, 4)}


class Compiling(Broken):
    """Blocks that compile at the very first step, for longer than three of the leases below."""

    LEASE_S = 3

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.compiled = False

    def step(self, batch: Sequence[Denoising]) -> None:
        if not self.compiled:
            time.sleep(3.5 * self.LEASE_S)
            self.compiled = True
        super().step(batch)


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_nobody_loses_a_lease_while_the_engine_compiles(
    demo_model: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    upkeep: Upkeep,
    store: ArtifactStore,
) -> None:
    model = demo_model.model_copy(
        update={
            "placement": Placement(slots=2),
            "load": demo_model.load.model_copy(update={"compile": True}),
        }
    )
    async with running(model, Compiling(family), cell, store, lease_s=Compiling.LEASE_S) as worker:
        jobs = [await submit(queue, render_width=width) for width in (96, 128)]

        async def done() -> bool:
            await upkeep.tidy()
            worker.check()
            return all([(await queue.get(job.id, user="ann")).terminal for job in jobs])

        await until(done)
    for job in jobs:
        ending = await queue.get(job.id, user="ann")
        assert (ending.state, ending.attempts) == (State.COMPLETED, 1)


async def test_a_busy_worker_leaves_what_it_could_not_run_now(
    demo_model: Model, models_dir: Path, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    batch = BatchPolicy(rows=4)
    model = demo_model.model_copy(update={"placement": Placement(slots=3), "batch": batch})
    slow = Slow(load_family(model, models_dir))
    async with running(model, slow, cell, store):
        lead = await submit(queue, steps=20, est_device_ms=4000)
        await until(lambda: runs(queue, lead))
        other_shape = await submit(queue, steps=1, est_device_ms=9000, render_width=128)
        rider = await submit(queue, steps=2, est_device_ms=9000)
        await until(lambda: runs(queue, rider))
        assert not (await queue.get(lead.id, user="ann")).terminal
        assert (await queue.get(other_shape.id, user="ann")).state is State.QUEUED
        for job in (lead, other_shape, rider):
            assert (await ended(queue, job)).state is State.COMPLETED


class Slow(Broken):
    """Twenty of its steps outlast this lease, of which a quarter is longer than several of them."""

    LEASE_S = 3

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.steps = 0

    def step(self, batch: Sequence[Denoising]) -> None:
        time.sleep(0.2)
        self.steps += 1
        super().step(batch)


@pytest.fixture
def showing(demo_model: Model) -> Model:
    """The demo model, which shows what it does after every step."""
    return demo_model.model_copy(update={"preview": PreviewPolicy(every_s=3600, every_steps=1)})


async def test_a_running_job_shows_previews_that_go_with_it(
    showing: Model,
    family: Family,
    cell: Cell,
    queue: JobQueue,
    store: ArtifactStore,
    upkeep: Upkeep,
) -> None:
    async with running(showing, family, cell, store):
        job = await submit(queue, steps=2000, width=128, height=72)

        async def shown(beyond: int = 0) -> bool:
            return (await queue.get(job.id, user="ann")).preview_step > beyond

        await until(shown)
        first = await queue.get(job.id, user="ann")
        await until(lambda: shown(first.preview_step))
        later = await queue.get(job.id, user="ann")
        assert first.preview == later.preview, "there is one of each attempt"
        data = b"".join([part async for part in store.read(later.preview)])
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (128, 72))
        await queue.cancel(job.id, user="ann")
    assert (await queue.get(job.id, user="ann")).preview == ""
    while await collect_garbage(upkeep, store):
        pass
    assert [info.key async for info in store.list(job.id)] == []


class Previewless:
    """The real store, except that previews stay on their way until they are let go, to fail."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self.tried = 0
        self.let_go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put_bytes(self, key: str, *args: Any, **options: Any) -> None:
        if "/previews/" in key:
            self.tried += 1
            await self.let_go.wait()
            raise StoreError("no room for previews")
        await self._store.put_bytes(key, *args, **options)


async def test_a_preview_that_cannot_be_stored_neither_delays_nor_fails_its_job(
    showing: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    previewless: Any = Previewless(store)
    async with running(showing, family, cell, previewless):
        done = await ended(queue, await submit(queue, steps=8))
        assert (done.state, previewless.tried) == (State.COMPLETED, 1)
        previewless.let_go.set()
        again = await ended(queue, await submit(queue, steps=8))
        assert (again.state, again.preview) == (State.COMPLETED, "")


async def test_a_job_that_goes_on_elsewhere_keeps_its_preview_and_leaves_none(
    showing: Model, family: Family, cell: Cell, queue: JobQueue, store: ArtifactStore
) -> None:
    job = await submit(queue, steps=200)

    async def shown() -> bool:
        return (await queue.get(job.id, user="ann")).preview_step > 0

    async with running(showing, family, cell, store):
        await until(shown)
    waiting = await queue.get(job.id, user="ann")
    assert waiting.state is State.QUEUED
    assert (await store.head(waiting.preview)).size_bytes > 0
    async with running(showing, family, cell, store):
        done = await ended(queue, job)
    keys = {info.key async for info in store.list(done.id)}
    assert keys == {each["key"] for each in done.result["artifacts"].values()}
