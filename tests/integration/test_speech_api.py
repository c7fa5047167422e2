"""Speech over HTTP: an ingress as production opens it, on a socket, and the official SDK."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
import pytest_asyncio
from openai import OpenAI
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from loadtest.errors import LoadTestError
from loadtest.speech import SENTENCE, measure, summarise
from quota.ledger import EntryType, Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.api import Keys
from serving.jobs import CELL, Cell, State, compare_holds
from serving.media import CODECS, AudioFormat
from serving.plan.sentences import sentences
from tests.api import error_of, running_ingress
from tests.jobs import until
from tests.queue_state import check, read_state
from tests.triton import triton

pytestmark = pytest.mark.asyncio

FOX = "The quick brown fox jumps over the lazy dog."
LONG = " ".join(f"This is sentence number {n} of a text that takes a while." for n in range(70))
PRICE = 400
"""Of LONG, in milli-credits: 100 for a thousand characters, rounded up."""


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> StackSettings:
    return StackSettings(
        redis_url=SecretStr(redis_server.url), data_dir=tmp_path, admin_key=SecretStr("admin")
    )


@pytest_asyncio.fixture
async def key(redis: Redis) -> str:
    """Ann's."""
    await Cell(redis).check_schema()
    _, key = await Keys(redis, CELL, SecretStr("admin")).create("ann")
    return key


@pytest.fixture
def url(settings: StackSettings, key: str) -> Iterator[str]:
    with running_ingress(settings) as url:
        yield url


@pytest.fixture
def sdk(url: str, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def http(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        yield client


def seconds(audio_format: str, data: bytes) -> float:
    """How long it sounds; it must be loud enough to be heard."""
    if audio_format == "pcm":
        samples, rate = np.frombuffer(data, "<i2").astype(float) / 32768, 24_000
    else:
        with av.open(io.BytesIO(data), "r") as container:
            frames = list(container.decode(audio=0))
        rate = frames[0].sample_rate
        to_float = av.AudioResampler("flt", "mono")
        parts = [each.to_ndarray()[0] for frame in frames for each in to_float.resample(frame)]
        samples = np.concatenate(parts)
    assert np.sqrt((samples**2).mean()) > 0.01
    return len(samples) / rate


async def job_of(redis: Redis) -> dict[str, str]:
    """The only one there is, once it has ended."""

    async def over() -> bool:
        state = await read_state(redis)
        check(state)
        jobs = list(state.jobs.values())
        return bool(jobs) and all(job["state"] != State.IN_PROGRESS for job in jobs)

    await until(over)
    (job,) = (await read_state(redis)).jobs.values()
    return job


@pytest.mark.parametrize("audio_format", list(AudioFormat))
async def test_every_format_through_the_sdk(
    sdk: OpenAI, redis: Redis, audio_format: AudioFormat
) -> None:
    def speak() -> tuple[bytes, str]:
        answer = sdk.audio.speech.create(
            model="tts-1", voice="alloy", input=FOX, response_format=audio_format.value
        )
        return answer.read(), answer.response.headers["content-type"]

    data, kind = await asyncio.to_thread(speak)
    assert kind == CODECS[audio_format].media_type
    assert 1.5 < seconds(audio_format, data) < 5
    job = await job_of(redis)
    assert (job["state"], job["pool"]) == ("completed", "espeak")
    result = json.loads(job["result"])
    assert result["characters"] == len(FOX)
    assert result["seconds"] == pytest.approx(seconds(audio_format, data), abs=0.15)


@pytest.mark.parametrize("audio_format", list(AudioFormat))
async def test_the_sdk_streams_it(sdk: OpenAI, audio_format: AudioFormat) -> None:
    def speak() -> tuple[list[int], bytes]:
        with sdk.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts",
            voice={"id": "en-gb+f2"},
            input=LONG,
            response_format=audio_format.value,
        ) as answer:
            parts = list(answer.iter_bytes())
        return [len(part) for part in parts], b"".join(parts)

    sizes, data = await asyncio.to_thread(speak)
    assert len(sizes) > 3
    assert seconds(audio_format, data) > 60


async def test_it_is_heard_long_before_it_is_made(http: httpx.AsyncClient) -> None:
    """Nobody reads on after the first bytes, so most of it is not even made."""
    body = {"input": LONG, "response_format": "pcm"}
    async with http.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.status_code == 200
        assert "content-length" not in answer.headers
        first = await anext(answer.aiter_raw())
    assert 0 < len(first) < 2 * 24_000 * 60


async def test_as_events(http: httpx.AsyncClient) -> None:
    body = {"input": f"{FOX} {FOX}", "stream_format": "sse", "response_format": "wav"}
    answer = await http.post("/v1/audio/speech", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
    *deltas, done = events
    assert {each["type"] for each in deltas} == {"speech.audio.delta"}
    data = b"".join(base64.b64decode(each["audio"]) for each in deltas)
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["characters"] == 2 * len(FOX) + 1
    assert done["usage"]["seconds"] == pytest.approx(seconds("wav", data), abs=0.01)


async def test_speed_is_how_long_it_takes(http: httpx.AsyncClient) -> None:
    took = {}
    for speed in (0.25, 1.0, 4.0):
        body = {"input": FOX, "speed": speed, "response_format": "pcm"}
        took[speed] = seconds("pcm", (await http.post("/v1/audio/speech", json=body)).content)
    assert took[0.25] == pytest.approx(4 * took[1.0], rel=0.25)
    assert took[4.0] == pytest.approx(took[1.0] / 4, rel=0.25)


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"voice": "nobody"}, "voice_not_found", "voice"),
        ({"voice": {"id": "nobody"}}, "voice_not_found", "voice"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": " \n … "}, "invalid_value", "input"),
        ({"input": "x" * 100_000}, "string_too_long", "input"),
        ({"input": None}, "invalid_value", "input"),
        ({"response_format": "ogg"}, "invalid_value", "response_format"),
        ({"stream_format": "websocket"}, "invalid_value", "stream_format"),
        ({"speed": 0.1}, "out_of_range", "speed"),
        ({"speed": 5}, "out_of_range", "speed"),
        ({"speed": True}, "invalid_value", "speed"),
        ({"instructions": "Whisper."}, "unsupported_parameter", "instructions"),
        ({"model": "sora-2"}, "model_not_found", "model"),
        ({"loudness": 3}, "invalid_value", "loudness"),
        ({"pitch": 3}, "unknown_parameter", "pitch"),
    ],
)
async def test_what_is_wrong_is_named_and_costs_nothing(
    http: httpx.AsyncClient, redis: Redis, wrong: dict[str, Any], code: str, param: str
) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": FOX, **wrong}
    error = error_of(await http.post("/v1/audio/speech", json=body), 400)
    assert (error["code"], error["param"]) == (code, param)
    state = await read_state(redis)
    check(state)
    assert (state.jobs, state.of("used")) == ({}, {})


async def test_the_sdk_knows_what_went_wrong(sdk: OpenAI) -> None:
    def speak() -> None:
        sdk.audio.speech.create(model="tts-1", voice="nobody", input=FOX)

    with pytest.raises(openai.BadRequestError) as raised:
        await asyncio.to_thread(speak)
    assert raised.value.code == "voice_not_found"
    assert "alloy" in raised.value.message


async def test_voices_are_listed(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/audio/voices")).json()["data"]
    by_id = {each["id"]: each for each in listed}
    assert by_id["alloy"]["same_as"] == "en-us"
    assert by_id["de"] == {
        "id": "de",
        "object": "audio.voice",
        "model": "espeak",
        "name": "German",
        "language": "de",
        "gender": by_id["de"]["gender"],
        "same_as": None,
    }
    german = (await http.get("/v1/audio/voices", params={"language": "DE"})).json()["data"]
    assert {each["language"] for each in german} == {"de"}
    assert error_of(await http.get("/v1/audio/voices", params={"model": "x"}), 400)


async def test_the_model_says_what_it_can(http: httpx.AsyncClient) -> None:
    cards = {each["id"]: each for each in (await http.get("/v1/models")).json()["data"]}
    card = cards["espeak"]
    assert card["modality"] == "speech"
    assert card["formats"]["opus"] == {
        "media_type": "audio/ogg",
        "sample_rate_hz": 24_000,
        "channels": 1,
    }
    assert (await http.get("/v1/models/tts-1")).json() == card
    assert "demo-wan" in cards


async def test_without_a_key_nothing_is_said(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as anyone:
        error_of(await anyone.post("/v1/audio/speech", json={"input": FOX}), 401)
        error_of(await anyone.get("/v1/audio/voices"), 401)


async def bought(redis: Redis) -> RedisLedger:
    ledger = RedisLedger(Cell(redis))
    await ledger.grant("ann", ref="pay", amount=5_000, kind=Kind.PURCHASE)
    return ledger


async def books(redis: Redis) -> tuple[list[EntryType], int, int]:
    ledger = RedisLedger(Cell(redis))
    assert (await verify(Cell(redis))).differences == []
    assert await compare_holds(Cell(redis)) == []
    has = await ledger.balance("ann")
    return [entry.type for entry in await ledger.entries()], has.spendable, has.held


async def test_all_of_it_is_paid_by_who_hears_all(http: httpx.AsyncClient, redis: Redis) -> None:
    await bought(redis)
    body = {"input": LONG, "service_tier": "priority", "response_format": "mp3"}
    answer = await http.post("/v1/audio/speech", json=body)
    assert answer.status_code == 200
    job = await job_of(redis)
    price = -(-100 * len(LONG) // 1000)
    assert (job["state"], job["class"], job["credits"]) == ("completed", "burst", str(price))
    assert await books(redis) == (
        [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE],
        5_000 - price,
        0,
    )


async def test_who_hangs_up_pays_for_what_was_made(http: httpx.AsyncClient, redis: Redis) -> None:
    await bought(redis)
    # Too much for the buffers between us.
    body = {"input": LONG, "service_tier": "priority", "response_format": "wav", "speed": 0.25}
    async with http.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.status_code == 200
        await anext(answer.aiter_raw())
    job = await job_of(redis)
    whole = -(-100 * len(LONG) // 1000)
    assert job["state"] == "cancelled"
    assert 0 < int(job["credits"]) < whole
    assert await books(redis) == (
        [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE],
        5_000 - int(job["credits"]),
        0,
    )


async def test_an_allowance_that_is_used_up_refuses_it_as_a_clip(
    http: httpx.AsyncClient, redis: Redis
) -> None:
    body = {"input": FOX, "service_tier": "priority"}
    error = error_of(await http.post("/v1/audio/speech", json=body), 429)
    assert error["code"] == "insufficient_credits"
    assert (await read_state(redis)).hashes["refused:espeak"] == {"credits": "1"}


async def test_it_is_counted(http: httpx.AsyncClient, redis: Redis) -> None:
    await http.post("/v1/audio/speech", json={"input": FOX})
    await job_of(redis)
    text = (await http.get("/metrics")).text
    assert 'reelserve_jobs_ended_total{model="espeak",status="completed"} 1.0' in text
    line = 'reelserve_first_step_seconds_count{class="standard",model="espeak"} 1.0'
    assert line in text
    ready = await http.get("/readyz")
    assert ready.json() == {"status": "ready"}


async def test_many_listen_at_once(http: httpx.AsyncClient, redis: Redis) -> None:
    body = {"input": f"{FOX} {FOX}", "response_format": "mp3"}
    answers = await asyncio.gather(*(http.post("/v1/audio/speech", json=body) for _ in range(12)))
    assert [answer.status_code for answer in answers] == [200] * 12
    check(await read_state(redis))


async def test_the_benchmark_hears_every_request(url: str, key: str) -> None:
    idle, beside = await measure(
        url, key, requests=3, audio_format="mp3", videos=0, tell=lambda text: None
    )
    assert beside is None
    assert len(idle.first_ms) == len(idle.whole_ms) == len(idle.healthz_ms) == 3
    assert all(
        0 < first <= whole for first, whole in zip(idle.first_ms, idle.whole_ms, strict=True)
    )
    value = summarise(idle, idle)
    assert value["requests"] == 3
    assert value["targets"]["beside_videos_ratio"] == {"target": 2.0, "found": 1.0, "met": True}
    assert len(SENTENCE.split()) == 30
    assert sentences(SENTENCE) == [SENTENCE]
    with pytest.raises(LoadTestError, match="invalid_value"):
        await measure(url, key, requests=1, audio_format="ogg", videos=0, tell=lambda text: None)


async def test_fifty_at_once_reach_triton_in_batches(
    settings: StackSettings, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REELSERVE_JOBS_INLINE_OWN", "50")
    headers = {"authorization": f"Bearer {key}"}
    body = {"input": SENTENCE, "response_format": "pcm", "service_tier": "flex"}
    names = ("nv_inference_count", "nv_inference_exec_count")
    with triton(tmp_path / "triton", "speech", "speech_voices") as server:
        with running_ingress(settings.model_copy(update={"triton_url": server.url})) as url:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=90) as http:
                await http.get("/v1/audio/voices")
                before = [server.metric(name, "speech") for name in names]
                answers = await asyncio.gather(
                    *(http.post("/v1/audio/speech", json=body) for _ in range(50))
                )
        assert [answer.status_code for answer in answers] == [200] * 50
        requests, batches = (
            server.metric(name, "speech") - was for name, was in zip(names, before, strict=True)
        )
    assert requests == 50
    assert batches < requests


async def test_triton_is_killed_while_somebody_listens(
    settings: StackSettings, redis: Redis, key: str, tmp_path: Path
) -> None:
    """The text goes on after the restart: heard whole, and paid once."""
    await bought(redis)
    headers = {"authorization": f"Bearer {key}"}
    with triton(tmp_path / "triton", "speech", "speech_voices", "upscale") as server:
        through = settings.model_copy(update={"triton_url": server.url})
        with running_ingress(through) as url:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=90) as http:
                assert (await http.get("/readyz")).json() == {"status": "ready"}
                whole = await http.post(
                    "/v1/audio/speech", json={"input": LONG, "response_format": "pcm"}
                )
                assert len(sentences(LONG)) == 70
                body = {"input": LONG, "response_format": "pcm", "service_tier": "priority"}
                parts: list[bytes] = []
                restarts: asyncio.Task[None] | None = None
                async with http.stream("POST", "/v1/audio/speech", json=body) as answer:
                    assert answer.status_code == 200
                    async for part in answer.aiter_raw():
                        parts.append(part)
                        if restarts is None:
                            server.kill()
                            restarts = asyncio.create_task(asyncio.to_thread(server.start))
                assert restarts is not None
                await restarts
                assert (await http.get("/readyz")).json() == {"status": "ready"}
                # To be told, and the rest goes on without.
                server.kill()
                away = {"espeak": "away", "triton/upscale": "away"}
                assert (await http.get("/readyz")).json() == {"status": "ready", **away}
    took, alone = seconds("pcm", b"".join(parts)), seconds("pcm", whole.content)
    assert took == pytest.approx(alone, rel=0.02)
    price = -(-100 * len(LONG) // 1000)
    assert await books(redis) == (
        [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE],
        5_000 - price,
        0,
    )


async def test_a_neural_voice_without_a_triton_is_not_served(
    settings: StackSettings, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running_ingress(settings.model_copy(update={"speech": ["mms-tts-eng", "espeak"]})) as url:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            cards = {each["id"] for each in (await http.get("/v1/models")).json()["data"]}
            assert ("espeak" in cards, "mms-tts-eng" in cards) == (True, False)
            assert (await http.post("/v1/audio/speech", json={"input": FOX})).status_code == 200
    assert "'mms-tts-eng' is not served: a Triton server speaks for it" in caplog.text
    assert "REELSERVE_TRITON_URL" in caplog.text


async def test_a_triton_that_is_not_there_is_said_before_anything_is_paid(
    settings: StackSettings, redis: Redis, key: str
) -> None:
    await bought(redis)
    away = settings.model_copy(update={"triton_url": "127.0.0.1:9"})
    with running_ingress(away) as url:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            began = time.monotonic()
            error = error_of(await http.post("/v1/audio/speech", json={"input": FOX}), 503)
            assert time.monotonic() - began < 30
            assert error["code"] == "model_server_unreachable"
            assert error_of(await http.get("/readyz"), 503)
    assert (await read_state(redis)).jobs == {}
