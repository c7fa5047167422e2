"""The model repository that we ship, on a real Triton server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from serving.models.espeak import espeak
from serving.models.local_speaker import LocalSpeaker
from serving.models.triton import TritonServer
from serving.models.triton_speaker import TritonSpeaker
from serving.plan.errors import InvalidRequest, ModelServerLost
from serving.plan.speech import Speaker
from serving.plan.triton import Tensor, TritonModelSpec
from tests.triton import TritonServer as Process
from tests.triton import triton

FRAMES = Tensor(dtype="UINT8", shape=(-1, -1, -1, 3))
UPSCALE = TritonModelSpec(model="upscale", inputs={"FRAMES": FRAMES}, outputs={"UPSCALED": FRAMES})
CLASSIFY = TritonModelSpec(
    model="classify",
    inputs={"FRAMES": FRAMES},
    outputs={"SCORES": Tensor(dtype="FP32", shape=(-1, 3))},
)
TEXT = ["The first sentence.", "And a second one, which is longer.", "A third."]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("triton")
    with triton(folder, "speech", "speech_voices", "upscale", "classify") as server:
        yield server


@pytest_asyncio.fixture
async def server(process: Process) -> AsyncIterator[TritonServer]:
    server = TritonServer(process.url)
    # Connections are shared in this process: where a test killed it, the next try may be due later.
    async with asyncio.timeout(20):
        while not await server.model(UPSCALE).ready():
            await asyncio.sleep(0.05)
    yield server
    await server.close()


@pytest.fixture
def speaker(server: TritonServer) -> TritonSpeaker:
    return TritonSpeaker(server, 22_050)


async def said(speaker: Speaker, sentences: list[str], voice: str = "en-us") -> list[bytes]:
    return [pcm async for pcm in speaker.speak(sentences, voice, 1.0)]


def assert_the_same(heard: list[bytes], wanted: list[bytes]) -> None:
    """The same sentences: each as long, but for its flutter, as in :mod:`serving.models.espeak`."""
    assert len(heard) == len(wanted)
    for one, other in zip(heard, wanted, strict=True):
        assert abs(len(one) - len(other)) < 0.02 * len(other)


@pytest.mark.asyncio
async def test_every_model_is_what_its_callers_rely_on(
    server: TritonServer, speaker: TritonSpeaker
) -> None:
    await speaker.check()
    for spec in (UPSCALE, CLASSIFY):
        await server.model(spec).check()


@pytest.mark.asyncio
async def test_speech_is_the_same_through_triton_and_in_process(speaker: TritonSpeaker) -> None:
    local = LocalSpeaker(espeak())
    try:
        assert await speaker.voices() == await local.voices()
        for voice in ("en-us", "de+f3"):
            assert_the_same(await said(speaker, TEXT, voice), await said(local, TEXT, voice))
        assert local.sample_rate_hz == speaker.sample_rate_hz
        assert [local.spoken_speed(s) for s in (0.25, 1, 4)] == pytest.approx(
            [speaker.spoken_speed(s) for s in (0.25, 1, 4)]
        )
    finally:
        await local.close()


@pytest.mark.asyncio
async def test_a_voice_there_is_not_is_the_callers_mistake(speaker: TritonSpeaker) -> None:
    for each in (speaker, LocalSpeaker(espeak())):
        with pytest.raises(InvalidRequest, match="no voice 'en-xx'"):
            await said(each, TEXT, "en-xx")


@pytest.mark.asyncio
async def test_who_comes_later_is_heard_while_a_long_text_is_spoken(
    speaker: TritonSpeaker,
) -> None:
    order: list[str] = []

    async def listen(name: str, sentences: list[str]) -> None:
        async with aclosing(speaker.speak(sentences, "en-us", 1.0)) as spoken:
            async for _ in spoken:
                order.append(name)
                if name == "long" and order.count("long") == 1:
                    began.set()

    began = asyncio.Event()
    long = asyncio.create_task(listen("long", TEXT * 100))
    await began.wait()
    await listen("short", TEXT[:1])
    assert not long.done()
    await long
    assert order.count("long") == 300


@pytest.mark.asyncio
async def test_many_at_once_reach_the_model_in_batches(
    process: Process, speaker: TritonSpeaker
) -> None:
    names = ("nv_inference_count", "nv_inference_exec_count")
    await said(speaker, TEXT[:1])
    before = [process.metric(name, "speech") for name in names]
    heard = await asyncio.gather(*(said(speaker, TEXT) for _ in range(50)))
    requests, batches = (
        process.metric(name, "speech") - was for name, was in zip(names, before, strict=True)
    )
    assert {len(sentences) for sentences in heard} == {3}
    assert requests == 50
    assert batches < requests


@pytest.mark.asyncio
async def test_a_text_goes_on_after_its_server_was_killed(
    process: Process, speaker: TritonSpeaker
) -> None:
    """Sentence by sentence what it is without: nothing is missing and nothing is heard twice."""
    # Of two lengths, so that one too many or too few would be noticed.
    text = [f"Sentence {n}" + n % 2 * " is longer than the one before." for n in range(600)]
    whole = LocalSpeaker(espeak())
    heard: list[bytes] = []
    restarts: asyncio.Task[None] | None = None
    async with aclosing(speaker.speak(text, "en-us", 1.0)) as spoken:
        async for pcm in spoken:
            heard.append(pcm)
            if len(heard) == 5:
                process.kill()
                restarts = asyncio.create_task(asyncio.to_thread(process.start))
    assert restarts is not None
    await restarts
    assert_the_same(heard, await said(whole, text))


@pytest.mark.asyncio
async def test_a_server_that_stays_away_is_given_up(process: Process, server: TritonServer) -> None:
    impatient = TritonSpeaker(server, 22_050, patience_s=0.3)
    assert await impatient.ready()
    await impatient.voices()
    process.kill()
    try:
        with pytest.raises(ModelServerLost):
            await said(impatient, TEXT)
        # Those that it knows are those that it will have.
        assert len(await impatient.voices()) == len(espeak().voices)
        assert not await impatient.ready()
    finally:
        await asyncio.to_thread(process.start)


def picture() -> np.ndarray:
    """(64, 96, 3): a smooth pattern, such as an area of a photograph."""
    y, x = np.mgrid[0:64, 0:96].astype(np.float64)
    wave = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], axis=2)
    return np.asarray(127 + 100 * wave).astype(np.uint8)


@pytest.mark.asyncio
async def test_frames_have_twice_the_size_and_show_the_same(server: TritonServer) -> None:
    frames = np.stack([picture(), picture()[::-1]])
    got = (await server.model(UPSCALE).infer({"FRAMES": frames}))["UPSCALED"]
    assert got.shape == (2, 128, 192, 3)
    # As another implementation of the same filter has it.
    for frame, large in zip(frames, got, strict=True):
        other = np.asarray(Image.fromarray(frame).resize((192, 128), Image.Resampling.LANCZOS))
        inner = np.abs(large[6:-6, 6:-6].astype(int) - other[6:-6, 6:-6].astype(int))
        assert inner.max() <= 2


@pytest.mark.asyncio
async def test_a_frame_that_shows_nothing_is_told_from_a_picture(
    process: Process, server: TritonServer, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    grey = np.full((64, 96, 3), 128, np.uint8)
    # Flat, as a codec leaves it.
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "jpeg", quality=30)
    compressed = np.asarray(Image.open(file).convert("RGB"))
    frames = np.stack([grey, compressed, noise, picture()])
    scores = (await server.model(CLASSIFY).infer({"FRAMES": frames}))["SCORES"]
    labels = ["flat", "noise", "picture"]
    assert [labels[n] for n in scores.argmax(axis=1)] == ["flat", "flat", "noise", "picture"]
    assert scores.sum(axis=1) == pytest.approx(1)
    assert scores.max(axis=1).min() > 0.8
