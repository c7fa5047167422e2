"""Neural voices as they are served: weights in a Triton server's Python, an ingress that asks it.

The weights are tiny and random; what loads, serves and streams them is what runs anywhere.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
import yaml
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.api import Keys
from serving.jobs import CELL, Cell
from serving.models.triton import TritonServer
from serving.models.triton_speaker import SPEECH, TritonSpeaker
from serving.models.voices import load_voices
from serving.plan.catalog import PathWeights
from serving.plan.errors import InvalidInput, InvalidRequest
from serving.plan.speech_model import Checkpoint, CheckpointVoice, SpeechModel
from tests.api import error_of, running_ingress
from tests.tools import ROOT
from tests.triton import REPOSITORY, START_S_MAX, WITH_OURS, triton
from tests.triton import TritonServer as Process
from tests.voices import tiny_models, vits

pytestmark = pytest.mark.asyncio

SEAT = ROOT / "deployments" / "triton_voices" / "voice"
FUTURE = "from __future__ import annotations\n"
"""What has to come first in a file."""
TEXT = ["One.", "Two is longer.", "Three.", "And four is the longest of them."]
OTHER = Checkpoint(
    weights=PathWeights(path=""),
    sample_rate_hz=16_000,
    voices={"3": CheckpointVoice(language="en")},
)


def seated(folder: Path, models: Mapping[str, SpeechModel]) -> tuple[Path, dict[str, str]]:
    """A repository of Triton with a seat for each, and the variables with which these find their
    entries, as an operator would set them up."""
    catalog, repository = folder / "catalog", folder / "repository"
    catalog.mkdir(parents=True)
    for name, model in models.items():
        shutil.copytree(SEAT, repository / name)
        code = repository / name / "1" / "model.py"
        code.write_text(WITH_OURS + code.read_text().replace(FUTURE, ""))
        entry = model.model_dump(mode="json", exclude_defaults=True)
        (catalog / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    # The demo model's, which a stack with a Triton server expects there.
    shutil.copytree(REPOSITORY / "upscale", repository / "upscale")
    return repository, {
        "REELSERVE_CATALOG_DIRS": json.dumps([str(catalog)]),
        # Bits may depend on how many threads share the work.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("neural")


@pytest.fixture(scope="module")
def models(folder: Path) -> Mapping[str, SpeechModel]:
    """One of each family: each is a process that imports torch."""
    made = tiny_models(folder / "checkpoints")
    return {name: made[name] for name in ("tiny-speakers", "tiny-bark")}


@pytest.fixture(scope="module")
def process(folder: Path, models: Mapping[str, SpeechModel]) -> Iterator[Process]:
    repository, environment = seated(folder, models)
    with triton(
        folder, *models, "upscale", repository=repository, environment=environment
    ) as server:
        yield server


@pytest_asyncio.fixture
async def server(process: Process) -> AsyncIterator[TritonServer]:
    server = TritonServer(process.url)
    yield server
    await server.close()


@pytest_asyncio.fixture
async def http(
    process: Process,
    folder: Path,
    models: Mapping[str, SpeechModel],
    redis_server: RedisServer,
    redis: Redis,
    tmp_path: Path,
) -> AsyncIterator[httpx.AsyncClient]:
    settings = StackSettings(
        redis_url=SecretStr(redis_server.url),
        data_dir=tmp_path,
        admin_key=SecretStr("admin"),
        catalog_dirs=[folder / "catalog"],
        speech=list(models),
        triton_url=process.url,
    )
    await Cell(redis).check_schema()
    _, key = await Keys(redis, CELL, SecretStr("admin")).create("ann")
    with running_ingress(settings) as url:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            yield client


def speaker_of(server: TritonServer, model: SpeechModel) -> TritonSpeaker:
    return TritonSpeaker(
        server,
        model.seat.sample_rate_hz,
        speech=SPEECH.model_copy(update={"model": model.id}),
        voices=model.own_voices,
        speed_range=(model.seat.speed.min, model.seat.speed.max),
        # As long as one may take to start.
        patience_s=START_S_MAX,
    )


async def spoken(http: httpx.AsyncClient, **asked: object) -> bytes:
    body = {"input": " ".join(TEXT), "response_format": "pcm", **asked}
    answer = await http.post("/v1/audio/speech", json=body)
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_a_server_says_what_a_process_says_to_the_bit(
    server: TritonServer, models: Mapping[str, SpeechModel]
) -> None:
    for name, model in models.items():
        speaker, engine = speaker_of(server, model), load_voices(model, Path())
        await speaker.check()
        assert await speaker.ready()
        assert list(await speaker.voices()) == list(engine.voices)
        for voice in (each.id for each in engine.voices):
            heard = [pcm async for pcm in speaker.speak(TEXT, voice, 1.5)]
            assert heard == [engine.say(each, voice, 1.5) for each in TEXT], (name, voice)


async def test_a_text_goes_on_at_a_server_that_was_killed_with_the_same_bits(
    process: Process, server: TritonServer, models: Mapping[str, SpeechModel]
) -> None:
    model = models["tiny-speakers"]
    speaker, engine = speaker_of(server, model), load_voices(model, Path())
    heard: list[bytes] = []
    restarts: asyncio.Task[None] | None = None
    async with aclosing(speaker.speak(TEXT * 20, "0", 1.0)) as spoken:
        async for pcm in spoken:
            heard.append(pcm)
            if restarts is None:
                process.kill()
                restarts = asyncio.create_task(asyncio.to_thread(process.start))
    assert restarts is not None
    await restarts
    assert heard == [engine.say(each, "0") for each in TEXT * 20]


async def test_a_voice_there_is_not_is_the_callers_mistake(
    server: TritonServer, models: Mapping[str, SpeechModel]
) -> None:
    speaker = speaker_of(server, models["tiny-speakers"])
    with pytest.raises(InvalidRequest, match="no voice '3'"):
        await anext(speaker.speak(TEXT, "3", 1.0))
    # And the server's answer to whoever asks it otherwise.
    bare = speaker_of(server, models["tiny-speakers"].model_copy(update={"checkpoint": OTHER}))
    with pytest.raises(InvalidInput, match="There is no voice '3'"):
        await anext(bare.speak(TEXT, "3", 1.0))


async def test_a_text_is_a_wav(http: httpx.AsyncClient, models: Mapping[str, SpeechModel]) -> None:
    for name in models:
        wav = await spoken(http, model=name, response_format="wav")
        with av.open(io.BytesIO(wav), "r") as container:
            frames = list(container.decode(audio=0))
        assert {(each.sample_rate, each.layout.nb_channels) for each in frames} == {(24_000, 1)}
        samples = np.concatenate([each.to_ndarray()[0] for each in frames])
        assert len(samples) > 24_000
        assert np.abs(samples.astype(int)).max() > 300, name
        assert await spoken(http, model=name, response_format="wav") == wav, "the same bits"


async def test_speed_is_as_asked_by_the_model_and_then_by_stretching(
    http: httpx.AsyncClient,
) -> None:
    """VITS speaks up to twice as fast and half as fast by itself, and Bark at its own pace."""
    whole = {
        (name, speed): len(await spoken(http, model=name, speed=speed))
        for name in ("tiny-speakers", "tiny-bark")
        for speed in (0.25, 0.5, 1.0, 2.0, 4.0)
    }
    for faster, slower in ((0.5, 0.25), (4.0, 2.0)):
        for name in ("tiny-speakers", "tiny-bark"):
            assert whole[name, slower] == pytest.approx(2 * whole[name, faster], rel=0.05)
    assert whole["tiny-speakers", 2.0] < whole["tiny-speakers", 1.0] < whole["tiny-speakers", 0.5]
    assert whole["tiny-bark", 0.5] == pytest.approx(2 * whole["tiny-bark", 1.0], rel=0.05)


async def test_voices_and_models_are_listed(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/audio/voices", params={"model": "tiny-bark"})).json()["data"]
    assert [(each["id"], each["language"], each["gender"]) for each in listed] == [
        ("v2/de_speaker_0", "de", "female"),
        ("v2/en_speaker_6", "en", "neutral"),
    ]
    card = (await http.get("/v1/models/tiny-speakers")).json()
    assert card["default_voice"] == "0"
    assert card["instructions"] is False
    assert card["formats"]["wav"]["sample_rate_hz"] == 24_000
    assert card["formats"]["wav"]["channels"] == 1
    asked = {"model": "tiny-speakers", "input": "One.", "voice": "3"}
    error = error_of(await http.post("/v1/audio/speech", json=asked), 400)
    assert error["code"] == "voice_not_found"
    assert (await http.get("/readyz")).json() == {"status": "ready"}


async def test_loudness_is_as_asked(http: httpx.AsyncClient) -> None:
    """Sixteen LU apart; how near each comes is tested with the encoder."""
    loud, quiet = [
        np.frombuffer(await spoken(http, model="tiny-speakers", loudness=lufs), "<i2").astype(float)
        for lufs in (-16, -32)
    ]
    ratio = np.sqrt((loud**2).mean() / (quiet**2).mean())
    assert 20 * np.log10(ratio) == pytest.approx(16, abs=2)


async def test_a_server_without_the_checkpoint_names_it(tmp_path: Path) -> None:
    entry = SpeechModel.model_validate(vits(tmp_path / "nowhere"))
    repository, environment = seated(tmp_path, {entry.id: entry})
    server = Process(tmp_path, [entry.id], repository=repository, environment=environment)
    server.start(wait=False)
    try:
        server.wait_until_ended()
        assert f"there is no checkpoint in {tmp_path / 'nowhere'}" in server.log()
    finally:
        server.stop()
