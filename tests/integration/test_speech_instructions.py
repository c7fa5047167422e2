"""Instructions on how to speak reach a Triton model that takes them, all the way from HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
import yaml
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.api import Keys
from serving.jobs import CELL, Cell
from serving.models.triton import TritonServer
from serving.models.triton_speaker import SPEECH, VOICES, TritonSpeaker
from serving.plan.errors import ConfigError, InvalidRequest
from serving.plan.sentences import sentences
from tests.api import error_of, running_ingress
from tests.tools import ROOT
from tests.triton import TritonServer as Process
from tests.triton import triton

pytestmark = pytest.mark.asyncio

RATE_HZ = 16_000
TOLD = SPEECH.model_copy(update={"model": "told"})
VOICES_OF_TOLD = VOICES.model_copy(update={"model": "told_voices"})


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("told")
    with triton(
        folder, "told", "told_voices", repository=ROOT / "tests" / "triton_models"
    ) as server:
        yield server


@pytest_asyncio.fixture
async def http(
    process: Process, redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    entry = {
        "id": "told",
        "family": "triton",
        "description": "A tone.",
        "speech": {"voice": "tone", "instructions": True, "sentence_chars_max": 20},
        "triton": {
            "url": process.url,
            "model": "told",
            "voices_model": "told_voices",
            "sample_rate_hz": RATE_HZ,
        },
        "cost": {"s_per_kchar": 1.0},
    }
    (tmp_path / "told.yaml").write_text(yaml.safe_dump(entry))
    settings = StackSettings(
        redis_url=SecretStr(redis_server.url),
        data_dir=tmp_path,
        admin_key=SecretStr("admin"),
        catalog_dirs=[tmp_path],
        speech=["told"],
    )
    await Cell(redis).check_schema()
    _, key = await Keys(redis, CELL, SecretStr("admin")).create("ann")
    with running_ingress(settings) as url:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            yield client


def pitch_hz(pcm: bytes, rate_hz: int) -> float:
    samples = np.frombuffer(pcm, "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / rate_hz)[spectrum.argmax()])


async def test_how_it_is_said_is_as_it_was_told(http: httpx.AsyncClient) -> None:
    for told, heard_hz in ((None, 440), ("", 440), ("880", 880)):
        body = {"input": "One. Two.", "instructions": told, "response_format": "pcm"}
        answer = await http.post("/v1/audio/speech", json=body)
        assert answer.status_code == 200, answer.text
        assert len(answer.content) == pytest.approx(2 * 2 * 24_000, rel=0.01)
        assert pitch_hz(answer.content, 24_000) == pytest.approx(heard_hz, abs=2)
    assert (await http.get("/v1/models/told")).json()["instructions"] is True


async def test_a_sentence_is_no_longer_than_the_model_can_say(http: httpx.AsyncClient) -> None:
    """Each is a tone of a second."""
    words = "one two three four five six seven eight nine ten eleven"
    answer = await http.post("/v1/audio/speech", json={"input": words, "response_format": "pcm"})
    assert len(answer.content) == pytest.approx(2 * 24_000 * len(sentences(words, 20)), rel=0.01)


async def test_instructions_have_a_limit(http: httpx.AsyncClient) -> None:
    body = {"input": "One.", "instructions": "x" * 4097}
    error = error_of(await http.post("/v1/audio/speech", json=body), 400)
    assert error["param"] == "instructions"


async def test_a_speaker_that_takes_none_says_so(process: Process) -> None:
    server = TritonServer(process.url)
    try:
        deaf = TritonSpeaker(server, RATE_HZ, speech=TOLD, voices=VOICES_OF_TOLD)
        # The input is optional there, so it may be left out.
        await deaf.check()
        assert len([pcm async for pcm in deaf.speak(["One."], "tone", 1.0)]) == 1
        with pytest.raises(InvalidRequest, match="cannot be told") as raised:
            await anext(deaf.speak(["One."], "tone", 1.0, "880"))
        assert raised.value.param == "instructions"
    finally:
        await server.close()


async def test_a_model_without_the_input_is_not_what_the_catalog_says(
    tmp_path: Path,
) -> None:
    with triton(tmp_path, "speech", "speech_voices") as process:
        server = TritonServer(process.url)
        try:
            with pytest.raises(ConfigError, match="it has no input INSTRUCTIONS"):
                await TritonSpeaker(server, 22_050, instructed=True).check()
        finally:
            await server.close()
