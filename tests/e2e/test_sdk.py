"""The unmodified OpenAI SDK, current and old, against the whole stack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests import tools
from tests.e2e.stacks import Stack

SESSION = Path(__file__).with_name("sdk_session.py")


@pytest.mark.parametrize("version", ["3", "2.20"])
def test_a_frontends_session(stack: Stack, version: str) -> None:
    folder = tools.openai_sdk_dirs()[version]
    env = {**stack.client_env, "OPENAI_BASE_URL": f"{stack.url}/v1"}
    if folder:
        env["PYTHONPATH"] = str(folder)
    found = subprocess.run(
        [sys.executable, "-c", "import openai; print(openai.__version__)"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.startswith(version + ".")
    # A user of its own, so that the two versions do not see each other's videos.
    made = httpx.post(
        f"{stack.url}/v1/admin/keys",
        json={"user": f"sdk-{version}", "tier": "unlimited"},
        headers={"authorization": f"Bearer {stack.admin_key}"},
    )
    env["OPENAI_API_KEY"] = made.json()["key"]
    run = subprocess.run(
        [sys.executable, str(SESSION)], env=env, capture_output=True, text=True, timeout=240
    )
    assert run.stdout.endswith("ok\n"), run.stdout + run.stderr


def test_each_answer_has_one_request_id(stack: Stack) -> None:
    answer = httpx.get(f"{stack.url}/healthz")
    assert len(answer.headers.get_list("x-request-id")) == 1
    named = httpx.get(f"{stack.url}/v1/videos", headers={"x-request-id": "mine-1"})
    assert named.headers.get_list("x-request-id") == ["mine-1"]
