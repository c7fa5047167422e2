"""The command line against the whole stack, the way its user calls it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.e2e.stacks import REELSERVE, Stack

SMALL = ["--seconds", "1", "--steps", "3", "--seed", "7"]


def run(
    stack: Stack, *arguments: str, code: int = 0, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(REELSERVE), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**stack.client_env, **env},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def answer(stack: Stack, *arguments: str, **given: Any) -> Any:
    """What a command says as JSON, which must be all it says on stdout."""
    return json.loads(run(stack, *arguments, "--json", **given).stdout)


def test_submit_writes_the_clip(stack: Stack, tmp_path: Path) -> None:
    out = tmp_path / "ball.mp4"
    said = run(stack, "submit", "a red ball", *SMALL, "--out", str(out)).stdout
    assert out.read_bytes()[4:8] == b"ftyp"
    assert str(out) in said
    again = answer(stack, "submit", "a red ball", *SMALL, cwd=tmp_path)
    assert again["status"] == "completed"
    assert (tmp_path / f"{again['id']}.mp4").read_bytes() == out.read_bytes()


def test_autoscaling_that_is_off_is_said_to_be(stack: Stack) -> None:
    said = run(stack, "autoscale", "explain").stdout
    assert "demo-wan: autoscaling is off" in said
    assert answer(stack, "autoscale", "explain", "sora-2")["pools"][0]["decision"] is None
    off = answer(stack, "autoscale", "watch", code=1)
    assert off["error"]["code"] == "autoscaling_off"


def test_a_job_from_submission_to_deletion(stack: Stack, tmp_path: Path) -> None:
    video_id = answer(stack, "submit", "slow", "--steps", "2000", "--no-wait")["id"]
    assert answer(stack, "jobs", "show", video_id)["steps"] == 2000
    assert answer(stack, "jobs", "list", "--limit", "1")["data"][0]["id"] == video_id
    refused = answer(stack, "jobs", "download", video_id, code=1, cwd=tmp_path)
    assert refused["error"]["code"] == "video_not_ready"
    assert answer(stack, "jobs", "cancel", video_id)["status"] == "cancelled"
    assert answer(stack, "jobs", "delete", video_id)["deleted"] is True
    gone = answer(stack, "jobs", "show", video_id, code=1)
    assert gone["error"]["code"] == "video_not_found"


def test_ctrl_c_leaves_the_job_running_and_says_what_to_do(stack: Stack, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(REELSERVE), "submit", "slow", "--steps", "2000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=stack.client_env,
    )
    assert process.stderr is not None
    video_id = process.stderr.readline().partition(":")[0]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"reelserve jobs cancel {video_id}" in said
    assert answer(stack, "jobs", "cancel", video_id)["status"] == "cancelled"


def test_variants_are_downloaded(stack: Stack, tmp_path: Path) -> None:
    video_id = answer(stack, "submit", "x", *SMALL, "--no-wait")["id"]
    run(stack, "jobs", "download", video_id, "--wait", cwd=tmp_path)
    run(stack, "jobs", "download", video_id, "--variant", "spritesheet", cwd=tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".mp4", ".jpg"}


def test_keys_are_made_and_revoked(stack: Stack) -> None:
    key = run(stack, "keys", "create", "--user", "dora").stdout.strip()
    assert key.startswith("rsk_")
    assert answer(stack, "jobs", "list", REELSERVE_API_KEY=key)["data"] == []
    run(stack, "keys", "revoke", key)
    refused = answer(stack, "jobs", "list", code=1, REELSERVE_API_KEY=key)
    assert refused["error"]["code"] == "invalid_api_key"


def test_models_and_status(stack: Stack, tmp_path: Path) -> None:
    assert answer(stack, "models", "list")["data"][0]["id"] == "demo-wan"
    assert "demo-wan" in answer(stack, "status")["pools"]
    run(stack, "models", "install-demo", "--dir", str(tmp_path / "demo"))
    assert (tmp_path / "demo" / "model_index.json").exists()
