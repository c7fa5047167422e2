"""Texts that are spoken as jobs: worker processes that are killed, drained and preempted, against a
real Redis, a real store and the real espeak-ng."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.speech_worker import SpeechWorker
from quota.ledger import EntryType, Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import Cell, Job, JobQueue, JobSettings, Limits, State, Upkeep, Wish
from serving.media import ArtifactStore, open_store
from serving.models.espeak import espeak
from serving.models.local_speaker import LocalSpeaker
from serving.models.triton import TritonServer as Connection
from serving.models.triton_speaker import TritonSpeaker
from serving.plan.catalog import Placement
from serving.plan.classes import ServiceTier
from tests.jobs import ended, until
from tests.queue_state import check, read_state
from tests.speech_jobs import seconds, submit_text, text, voice_model
from tests.triton import triton

pytestmark = pytest.mark.asyncio

ROOT = Path(__file__).parents[2]
SENTENCES = 6
PRICE, GRANTED = 700, 5_000
PAID = Limits(generations=0, beyond="refuse", days_ms=[0, 10**14])
_names = itertools.count()


class Speakers:
    """Processes that speak, on one Redis and one store."""

    def __init__(self, redis_url: str, store_url: str, folder: Path) -> None:
        self._order = {"redis_url": redis_url, "store_url": store_url}
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **order: Any) -> tuple[subprocess.Popen[bytes], Path]:
        """The process, and the log of what it said."""
        name = f"r{next(_names)}"
        log = self._folder / f"{name}.log"
        log.touch()
        order = {**self._order, "replica": name, "log": str(log), **order}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.speaking_process", json.dumps(order)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.processes.append(process)
        return process, log

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return (tmp_path / "artifacts").as_uri()


@pytest.fixture
def store(store_url: str) -> ArtifactStore:
    return open_store(store_url)


@pytest_asyncio.fixture
async def speakers(
    redis_server: RedisServer, store_url: str, tmp_path: Path, upkeep: Upkeep
) -> AsyncIterator[Speakers]:
    async def keep_house() -> None:
        while True:
            with suppress(Exception):
                await upkeep.tidy()
            await asyncio.sleep(0.1)

    house = asyncio.create_task(keep_house())
    speakers = Speakers(redis_server.url, store_url, tmp_path)
    yield speakers
    speakers.stop()
    house.cancel()


async def gone(process: subprocess.Popen[bytes]) -> None:
    await asyncio.to_thread(process.wait, 60)


async def sound(store: ArtifactStore, job: Job) -> bytes:
    assert job.state is State.COMPLETED, job.error
    return b"".join([part async for part in store.read(job.result["artifacts"]["audio"]["key"])])


async def reached(queue: JobQueue, job: Job, step: int) -> None:
    async def there() -> bool:
        return (await queue.get(job.id, user=job.user)).checkpoint_step >= step

    await until(there)


async def counts(queue: JobQueue) -> dict[str, int]:
    return dict((await queue.pools(["espeak"]))["espeak"].counts)


def said(*logs: Path) -> list[str]:
    return [line for log in logs for line in log.read_text().splitlines()]


def length(sentences: int) -> float:
    """How long such a text sounds when nothing happens to it."""
    speaker = LocalSpeaker(espeak())

    async def speak() -> float:
        parts = [pcm async for pcm in speaker.speak(_sentences(sentences), "en-us", 1)]
        await speaker.close()
        return len(b"".join(parts)) / 2 / speaker.sample_rate_hz

    return asyncio.run(speak())


def _sentences(count: int) -> list[str]:
    return [f"This is sentence number {n} of a text." for n in range(count)]


KILLS = [
    *({"said": n} for n in (1, 3, SENTENCES)),
    *({"put": n} for n in (1, 4)),
    *({"checkpoint": n} for n in (1, 4, SENTENCES)),
    {"upload": 1},
    {"complete": 1},
]


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: "-".join(map(str, *kill.items())))
async def test_a_replica_killed_at_any_point_says_nothing_twice_and_is_paid_once(
    speakers: Speakers,
    queue: JobQueue,
    redis: Redis,
    cell: Cell,
    store: ArtifactStore,
    kill: dict[str, int],
) -> None:
    await RedisLedger(cell).grant("ann", ref="pay", amount=GRANTED, kind=Kind.PURCHASE)
    wish = Wish(ServiceTier.PRIORITY)
    job = await submit_text(queue, text(SENTENCES), price=PRICE, limits=PAID, wish=wish)
    process, first = speakers.start(kill=kill)
    await gone(process)
    at_death = await queue.get(job.id, user="ann")
    assert at_death.state is State.IN_PROGRESS
    _, second = speakers.start()
    done = await ended(queue, job)
    assert done.attempts == 2
    # The next one goes on behind what is saved: at most the sentence before the kill was not.
    assert len(said(first)) - at_death.checkpoint_step <= 1
    assert said(second) == _sentences(SENTENCES)[at_death.checkpoint_step :]
    heard = seconds("pcm", await sound(store, done))
    assert heard == pytest.approx(await asyncio.to_thread(length, SENTENCES), rel=0.02)
    assert heard == pytest.approx(done.result["duration_s"], abs=0.001)
    entries = [entry.type for entry in await RedisLedger(cell).entries()]
    assert entries == [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE]
    assert (await RedisLedger(cell).balance("ann")).spendable == GRANTED - PRICE
    assert (await verify(cell)).differences == []
    check(await read_state(redis))

    # Nothing is left but the file.
    async def only_the_file() -> bool:
        left = {info.key async for info in store.list(job.id)}
        return left == {done.result["artifacts"]["audio"]["key"]}

    await until(only_the_file)


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_drained_replica_hands_its_text_back_between_two_sentences(
    speakers: Speakers, queue: JobQueue, store: ArtifactStore
) -> None:
    job = await submit_text(queue, text(30))
    process, first = speakers.start(sentence_s=0.2)
    await reached(queue, job, 3)
    process.terminate()
    await gone(process)
    back = await queue.get(job.id, user="ann")
    assert (back.state, back.attempts) == (State.QUEUED, 0)
    assert back.checkpoint_step == len(said(first)) < 30
    _, second = speakers.start()
    done = await ended(queue, job)
    assert said(first, second) == _sentences(30)
    assert await counts(queue) == {"yielded": 1, "resumed": 1}
    assert done.attempts == 1
    await sound(store, done)


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_burst_text_is_spoken_in_the_place_of_a_long_one_which_then_goes_on(
    speakers: Speakers, queue: JobQueue, store: ArtifactStore
) -> None:
    long = await submit_text(queue, text(60), user="bob")
    _, log = speakers.start(sentence_s=0.1)
    await reached(queue, long, 4)
    fast = Limits(inside="burst")  # type: ignore[arg-type]
    short = await ended(queue, await submit_text(queue, "A burst!", limits=fast))
    assert short.state is State.COMPLETED
    assert not (waiting := await queue.get(long.id, user="bob")).terminal
    assert 4 <= waiting.checkpoint_step < 60
    done = await ended(queue, long)
    assert (done.state, done.preempted, done.attempts) == (State.COMPLETED, 1, 1)
    assert sorted(said(log)) == sorted([*_sentences(60), "A burst!"])
    assert (await counts(queue))["preempted"] == 1
    await sound(store, done)


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_cancelled_text_stops_at_its_next_sentence_and_leaves_nothing(
    speakers: Speakers, queue: JobQueue, cell: Cell, store: ArtifactStore
) -> None:
    job = await submit_text(queue, text(300))
    _, log = speakers.start(sentence_s=0.1)
    await reached(queue, job, 2)
    await queue.cancel(job.id, user="ann")
    heard = len(said(log))
    assert (await ended(queue, await submit_text(queue, "Next."))).state is State.COMPLETED
    assert len(said(log)) <= heard + 3
    (garbage,) = await Upkeep(cell, JobSettings(garbage_s=0)).garbage(2)
    assert garbage == job.id


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_what_was_spoken_otherwise_is_said_again(
    speakers: Speakers, queue: JobQueue, redis: Redis, cell: Cell
) -> None:
    job = await submit_text(queue, text(4))
    process, _ = speakers.start(kill={"said": 3})
    await gone(process)
    await redis.hset(cell.key("job", job.id), "checkpoint", f"{job.id}/spoken/other")
    _, log = speakers.start()
    assert (await ended(queue, job)).state is State.COMPLETED
    assert said(log) == _sentences(4)
    assert (await counts(queue))["checkpoint_foreign"] == 1


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_sentence_that_is_gone_is_said_again_with_those_behind_it(
    speakers: Speakers, queue: JobQueue, store: ArtifactStore
) -> None:
    job = await submit_text(queue, text(5))
    process, _ = speakers.start(kill={"said": 5})
    await gone(process)
    folder = (await queue.get(job.id, user="ann")).checkpoint
    await store.delete(f"{folder}/2")
    _, log = speakers.start()
    done = await ended(queue, job)
    assert said(log) == _sentences(5)[2:]
    heard = seconds("pcm", await sound(store, done))
    assert heard == pytest.approx(await asyncio.to_thread(length, 5), rel=0.02)


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_several_texts_take_turns(speakers: Speakers, queue: JobQueue) -> None:
    jobs = [await submit_text(queue, text(20), user=f"u{n}") for n in range(3)]
    speakers.start(slots=3, sentence_s=0.05)
    for job in jobs:
        await reached(queue, job, 3)
    assert not any([(await queue.get(job.id, user=job.user)).terminal for job in jobs])
    for job in jobs:
        assert (await ended(queue, job)).state is State.COMPLETED


@pytest.mark.parametrize("redis_server", ["7"], indirect=True)
async def test_a_model_server_that_is_killed_costs_no_sentence_and_no_attempt(
    queue: JobQueue, cell: Cell, store: ArtifactStore, tmp_path: Path
) -> None:
    """Back within the speaker's patience or not, the text is spoken to its end."""
    model = voice_model().model_copy(update={"placement": Placement(slots=1)})
    with triton(tmp_path / "triton", "speech", "speech_voices") as server:
        connection = Connection(server.url)
        speaker = TritonSpeaker(connection, 22_050, patience_s=1)
        limits = JobSettings(lease_s_min=2)
        worker = SpeechWorker(model, speaker, cell, store, "r1", limits)
        task = asyncio.create_task(worker.run())
        job = await submit_text(queue, text(400))
        await reached(queue, job, 3)
        server.kill()

        async def back() -> bool:
            return (await counts(queue)).get("yielded", 0) > 0

        await until(back)
        await asyncio.to_thread(server.start)
        done = await ended(queue, job)
        await worker.drain(30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()
    assert (done.state, done.attempts) == (State.COMPLETED, 1)
    heard = seconds("pcm", await sound(store, done))
    assert heard == pytest.approx(await asyncio.to_thread(length, 400), rel=0.02)
