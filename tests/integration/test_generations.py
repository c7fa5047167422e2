"""Texts as jobs over HTTP: an ingress as production opens it, a replica that speaks, and the
official SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import OpenAI
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from deployments.speech_worker import SpeechWorker
from quota.ledger import EntryType, Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.api import Keys
from serving.jobs import CELL, Cell, compare_holds
from serving.media import CODECS, AudioFormat, open_store
from serving.models.espeak import espeak
from serving.models.local_speaker import LocalSpeaker
from tests.api import error_of, running_ingress
from tests.queue_state import check, read_state
from tests.speech_jobs import FOX, seconds, text, voice_model

pytestmark = pytest.mark.asyncio

PATH = "/v1/audio/generations"
LONG = text(200)
"""Longer than what is heard at once."""


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> StackSettings:
    return StackSettings(
        redis_url=SecretStr(redis_server.url), data_dir=tmp_path, admin_key=SecretStr("admin")
    )


async def key_of(redis: Redis, user: str) -> str:
    await Cell(redis).check_schema()
    _, key = await Keys(redis, CELL, SecretStr("admin")).create(user)
    return key


@pytest_asyncio.fixture
async def key(redis: Redis) -> str:
    return await key_of(redis, "ann")


@pytest.fixture
def url(settings: StackSettings, key: str) -> Iterator[str]:
    with running_ingress(settings) as url:
        yield url


@pytest.fixture
def sdk(url: str, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


def client(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)


@pytest_asyncio.fixture
async def http(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client(url, key) as http:
        yield http


@asynccontextmanager
async def speaking(settings: StackSettings, cell: Cell) -> AsyncIterator[None]:
    """A replica."""
    speaker = LocalSpeaker(espeak())
    worker = SpeechWorker(voice_model(), speaker, cell, open_store(settings.store_url), "r1")
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        await worker.drain(30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await speaker.close()


async def completed(http: httpx.AsyncClient, generation_id: str) -> dict[str, Any]:
    async with asyncio.timeout(90):
        while True:
            answer = await http.get(f"{PATH}/{generation_id}")
            shown: dict[str, Any] = answer.json()
            if shown["status"] not in ("queued", "in_progress"):
                assert shown["status"] == "completed", shown
                return shown
            assert int(answer.headers["openai-poll-after-ms"]) >= 250
            await asyncio.sleep(0.05)


async def created(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post(PATH, json={"input": FOX, **fields})
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def test_a_text_becomes_a_file_of_each_format(
    http: httpx.AsyncClient, settings: StackSettings, cell: Cell, redis: Redis
) -> None:
    asked = {each: await created(http, response_format=each, speed=1.5) for each in AudioFormat}
    async with speaking(settings, cell):
        for audio_format, first in asked.items():
            shown = await completed(http, first["id"])
            answer = await http.get(f"{PATH}/{first['id']}/content")
            assert answer.headers["content-type"] == CODECS[audio_format].media_type
            assert len(answer.content) == shown["size_bytes"]
            assert 1 < seconds(audio_format, answer.content) < 4
            assert seconds(audio_format, answer.content) == pytest.approx(
                shown["seconds"], abs=0.15
            )
    assert first["id"].startswith("audio_")
    assert {name: first[name] for name in ("object", "status", "model", "voice", "input")} == {
        "object": "audio.generation",
        "status": "queued",
        "model": "espeak",
        "voice": "alloy",
        "input": FOX,
    }
    assert (shown["progress"], shown["step"], shown["steps"]) == (100, 1, 1)
    assert shown["characters"] == len(FOX)
    assert set(shown["timings"]) == {"queued_s", "speak_s", "store_s", "total_s"}
    name = f'inline; filename="{shown["id"]}.{audio_format}"'
    assert answer.headers["content-disposition"] == name
    part = await http.get(f"{PATH}/{shown['id']}/content", headers={"range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, answer.content[2:6])
    async with httpx.AsyncClient() as anyone:
        signed = await anyone.get(shown["content_urls"]["audio"])
    assert signed.content == answer.content
    check(await read_state(redis))


async def test_speech_that_is_asynchronous_is_such_a_job_through_the_sdk(
    sdk: OpenAI, http: httpx.AsyncClient, settings: StackSettings, cell: Cell
) -> None:
    def speak() -> dict[str, Any]:
        answer = sdk.audio.speech.with_raw_response.create(
            model="tts-1",
            voice="nova",
            input=LONG,
            response_format="wav",
            extra_body={"async": True},
        )
        shown: dict[str, Any] = json.loads(answer.http_response.content)
        return shown

    assert len(LONG) > 4096
    shown = await asyncio.to_thread(speak)
    assert (shown["object"], shown["model"], shown["voice"]) == (
        "audio.generation",
        "tts-1",
        "nova",
    )
    assert (shown["input"], shown["characters"]) == (LONG[:1000], len(LONG))
    async with speaking(settings, cell):
        shown = await completed(http, shown["id"])
    content = (await http.get(f"{PATH}/{shown['id']}/content")).content
    assert seconds("wav", content) == pytest.approx(shown["seconds"], abs=0.05)
    assert shown["seconds"] > 200


@pytest.mark.parametrize(
    ("path", "wrong", "code", "param"),
    [
        (PATH, {"input": "x" * 100_000}, "string_too_long", "input"),
        (PATH, {"input": ""}, "invalid_value", "input"),
        (PATH, {"voice": "nobody"}, "voice_not_found", "voice"),
        (PATH, {"response_format": "ogg"}, "invalid_value", "response_format"),
        (PATH, {"speed": 9}, "out_of_range", "speed"),
        (PATH, {"model": "sora-2"}, "model_not_found", "model"),
        (PATH, {"stream_format": "sse"}, "unknown_parameter", "stream_format"),
        (
            "/v1/audio/speech",
            {"async": True, "stream_format": "sse"},
            "invalid_value",
            "stream_format",
        ),
        ("/v1/audio/speech", {"async": True, "input": "x" * 100_000}, "string_too_long", "input"),
        ("/v1/audio/speech", {"async": "maybe"}, "invalid_value", "async"),
    ],
)
async def test_what_is_wrong_is_named_and_costs_nothing(
    http: httpx.AsyncClient, redis: Redis, path: str, wrong: dict[str, Any], code: str, param: str
) -> None:
    error = error_of(await http.post(path, json={"input": FOX, **wrong}), 400)
    assert (error["code"], error["param"]) == (code, param)
    state = await read_state(redis)
    check(state)
    assert (state.jobs, state.of("used")) == ({}, {})


async def test_who_asks_to_hear_too_much_at_once_is_told_what_to_do(
    http: httpx.AsyncClient,
) -> None:
    answer = await http.post("/v1/audio/speech", json={"input": LONG})
    message = error_of(answer, 400)["message"]
    assert f"at most 4096 that are heard at once. With async: true, or at POST {PATH}" in message
    (await created(http, input=LONG))["id"]


async def test_each_user_has_lists_of_each_kind(
    http: httpx.AsyncClient, url: str, redis: Redis
) -> None:
    texts = [(await created(http, input=f"Number {n}."))["id"] for n in range(3)]
    video = (await http.post("/v1/videos", json={"prompt": "x"})).json()["id"]
    page = (await http.get(PATH, params={"limit": 2})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (texts[:0:-1], True)
    page = (await http.get(PATH, params={"after": page["last_id"]})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (texts[:1], False)
    assert [each["id"] for each in (await http.get("/v1/videos")).json()["data"]] == [video]
    # Neither is the other.
    assert error_of(await http.get(f"/v1/videos/{texts[0]}"), 404)["code"] == "video_not_found"
    assert error_of(await http.get(f"{PATH}/{video}"), 404)["code"] == "audio_not_found"
    assert error_of(await http.delete(f"{PATH}/{video}"), 404)
    assert error_of(await http.get(PATH, params={"after": video}), 404)["param"] == "after"
    assert error_of(await http.get("/v1/videos", params={"after": texts[0]}), 404)
    async with client(url, await key_of(redis, "bob")) as bob:
        assert (await bob.get(PATH)).json()["data"] == []
        for answer in (
            await bob.get(f"{PATH}/{texts[0]}"),
            await bob.get(f"{PATH}/{texts[0]}/content"),
            await bob.post(f"{PATH}/{texts[0]}/cancel"),
            await bob.delete(f"{PATH}/{texts[0]}"),
        ):
            assert error_of(answer, 404)["code"] == "audio_not_found"
    check(await read_state(redis))


async def test_it_is_cancelled_and_deleted(
    http: httpx.AsyncClient, settings: StackSettings, cell: Cell, redis: Redis
) -> None:
    first, second = await created(http), await created(http)
    for _ in range(2):
        cancelled = (await http.post(f"{PATH}/{first['id']}/cancel")).json()
        assert (cancelled["status"], cancelled["error"]["code"]) == ("cancelled", "cancelled")
    error = error_of(await http.get(f"{PATH}/{second['id']}/content"), 400)
    assert error["code"] == "audio_not_ready"
    async with speaking(settings, cell):
        await completed(http, second["id"])
    error = error_of(await http.post(f"{PATH}/{second['id']}/cancel"), 400)
    assert error["code"] == "audio_already_ended"
    store = open_store(settings.store_url)
    assert len([info async for info in store.list(second["id"])]) == 1
    for shown in (first, second):
        for _ in range(2):
            answer = (await http.delete(f"{PATH}/{shown['id']}")).json()
            assert answer == {
                "id": shown["id"],
                "object": "audio.generation.deleted",
                "deleted": True,
            }
        assert [info async for info in store.list(shown["id"])] == []
    assert error_of(await http.get(f"{PATH}/{second['id']}"), 404)
    assert (await http.get(PATH)).json()["data"] == []
    check(await read_state(redis))


async def test_the_same_request_again_is_said_once(http: httpx.AsyncClient, redis: Redis) -> None:
    for path, body in (
        (PATH, {"input": FOX}),
        ("/v1/audio/speech", {"input": FOX, "async": True}),
    ):
        headers = {"idempotency-key": f"key-{path}"}
        first = await http.post(path, json=body, headers=headers)
        again = await http.post(path, json={**body, "response_format": "mp3"}, headers=headers)
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        other = await http.post(path, json={**body, "input": "Other."}, headers=headers)
        assert error_of(other, 422)["code"] == "idempotency_key_reused"
    retried = {"x-stainless-retry-count": "1"}
    first = await http.post(PATH, json={"input": "Once."})
    again = await http.post(PATH, json={"input": "Once."}, headers=retried)
    assert again.json()["id"] == first.json()["id"]
    assert len((await read_state(redis)).jobs) == 3


async def test_it_is_paid_when_it_is_made(
    http: httpx.AsyncClient, settings: StackSettings, cell: Cell
) -> None:
    ledger = RedisLedger(cell)
    refused = await http.post(PATH, json={"input": LONG, "service_tier": "priority"})
    assert error_of(refused, 429)["code"] == "insufficient_credits"
    await ledger.grant("ann", ref="pay", amount=5_000, kind=Kind.PURCHASE)
    shown = await created(http, input=LONG, service_tier="priority", max_credits=2)
    assert (shown["class"], shown["usage"]["from"]) == ("burst", "credits")
    price = -(-100 * len(LONG) // 1000)
    assert (await ledger.balance("ann")).held == price
    async with speaking(settings, cell):
        assert (await completed(http, shown["id"]))["usage"]["credits"] == price / 1000
    dropped = await created(http, input=LONG, service_tier="priority")
    await http.post(f"{PATH}/{dropped['id']}/cancel")
    written = [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE, EntryType.HOLD]
    assert [entry.type for entry in await ledger.entries()] == [*written, EntryType.RELEASE]
    assert (await ledger.balance("ann")).spendable == 5_000 - price
    assert (await verify(cell)).differences == []
    assert await compare_holds(cell) == []


async def test_what_shows_jobs_shows_these(
    http: httpx.AsyncClient, url: str, settings: StackSettings, cell: Cell
) -> None:
    waits = (await created(http))["id"]
    async with client(url, "admin") as operator:
        top = (await operator.get("/v1/admin/queue/tts-1")).json()
        assert (top["model"], sum(each["jobs"] for each in top["classes"])) == ("espeak", 1)
        why = (await operator.get(f"/v1/admin/jobs/{waits}/explain")).json()
        assert "There is no replica of 'espeak' now." in why["reasons"]
        error = error_of(await operator.get("/v1/admin/jobs/audio_x/explain"), 404)
        assert error["code"] == "audio_not_found"
    usage = (await http.get("/v1/usage")).json()
    assert (usage["queued"]["count"], set(usage["surge"])) == (1, {"demo-wan", "espeak"})
    async with speaking(settings, cell):
        await completed(http, waits)
        pool = (await http.get("/v1/status")).json()["pools"]["espeak"]
        assert (pool["ended"], len(pool["replicas"])) == ({"completed": 1}, 1)
    text = (await http.get("/metrics")).text
    assert 'reelserve_jobs_ended_total{model="espeak",status="completed"} 1.0' in text
    assert (await http.get("/v1/models/tts-1")).json()["job_chars_max"] == 40_000


async def test_the_sdk_knows_what_went_wrong(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await asyncio.to_thread(
            lambda: sdk.audio.speech.create(model="tts-1", voice="alloy", input=LONG)
        )
    assert raised.value.code == "string_too_long"
