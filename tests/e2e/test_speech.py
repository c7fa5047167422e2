"""Speech from the whole stack, through its proxy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import tools
from tests.e2e.stacks import Stack

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
