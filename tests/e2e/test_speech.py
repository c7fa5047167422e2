"""Speech from the whole stack, through its proxy."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import httpx
import psutil
import pytest
from openai import DefaultHttpxClient, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests import tools
from tests.e2e.stacks import Stack

CHAPTER = " ".join(f"This is sentence number {n} of a chapter." for n in range(900))
SESSION = Path(__file__).with_name("speech_session.py")
LONG = " ".join(f"This is sentence number {n} of a text that takes a while." for n in range(70))


@pytest.mark.parametrize("version", ["3", "2.20"])
def test_a_frontend_speaks(stack: Stack, version: str) -> None:
    folder = tools.openai_sdk_dirs()[version]
    env = {**stack.client_env, "OPENAI_BASE_URL": f"{stack.url}/v1"}
    env["OPENAI_API_KEY"] = stack.api_key
    if folder:
        env["PYTHONPATH"] = str(folder)
    run = subprocess.run(
        [sys.executable, str(SESSION)], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.stdout.endswith("ok\n"), run.stdout + run.stderr


def ended(stack: Stack, status: str) -> float:
    """How many requests for speech ended so."""
    labels = {"model": "espeak", "status": status}
    for family in text_string_to_metric_families(httpx.get(f"{stack.url}/metrics").text):
        for sample in family.samples:
            if sample.name == "reelserve_jobs_ended_total" and sample.labels == labels:
                return sample.value
    return 0.0


def test_who_hangs_up_is_noticed_through_the_proxy(stack: Stack) -> None:
    before = ended(stack, "cancelled")
    body = {"input": LONG, "response_format": "wav", "speed": 0.25}
    with stack.client() as http:
        began = time.monotonic()
        with http.stream("POST", "/v1/audio/speech", json=body) as answer:
            assert answer.status_code == 200
            first = next(answer.iter_raw())
        assert first.startswith(b"RIFF")
        # Long before the twenty minutes that it sounds could have been made and sent.
        assert time.monotonic() - began < 20
    deadline = time.monotonic() + 60
    while ended(stack, "cancelled") == before:
        assert time.monotonic() < deadline, "nobody noticed that the listener is gone"
        time.sleep(0.2)
    assert ended(stack, "cancelled") == before + 1


def generation(http: httpx.Client, generation_id: str) -> dict[str, Any]:
    answer = http.get(f"/v1/audio/generations/{generation_id}")
    answer.raise_for_status()
    shown: dict[str, Any] = answer.json()
    return shown


def test_a_chapter_is_spoken_to_its_end_though_its_replica_is_killed(stack: Stack) -> None:
    client = OpenAI(
        base_url=f"{stack.url}/v1",
        api_key=stack.api_key,
        http_client=DefaultHttpxClient(trust_env=False),
    )
    answer = client.audio.speech.with_raw_response.create(
        model="tts-1", voice="alloy", input=CHAPTER, extra_body={"async": True}
    )
    chapter = json.loads(answer.http_response.content)["id"]
    with stack.client() as http:
        deadline = time.monotonic() + 60
        while not 20 < generation(http, chapter)["step"] < 900:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (replica,) = stack.named("ray::ServeReplica:reelserve:espeak")
        replica.kill()
        psutil.wait_procs([replica], timeout=10)
        deadline = time.monotonic() + 150
        while (shown := generation(http, chapter))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < deadline, shown
            time.sleep(0.5)
        assert (shown["status"], shown["attempts"], shown["steps"]) == ("completed", 2, 900)
        counts = http.get("/v1/status").json()["pools"]["espeak"]["counts"]
        assert counts["resumed"] >= 1
        content = http.get(f"/v1/audio/generations/{chapter}/content").content
    with av.open(io.BytesIO(content), "r") as sound:
        assert sound.duration is not None
        assert sound.duration / 1e6 == pytest.approx(shown["seconds"], rel=0.01)
    assert shown["seconds"] > 900
