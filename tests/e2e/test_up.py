"""``reelserve up``: what it prints, what it keeps, what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.stacks import REELSERVE, Stack, clean_env, gone, up

ROOT = Path(__file__).parents[2]


def client_of(stack: Stack) -> httpx.Client:
    return httpx.Client(
        base_url=stack.url, headers={"authorization": f"Bearer {stack.api_key}"}, timeout=30
    )


def create(client: httpx.Client, **fields: Any) -> str:
    answer = client.post("/v1/videos", json={"prompt": "x", "seconds": 1, "steps": 2, **fields})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def wait_for(client: httpx.Client, video_id: str) -> dict[str, Any]:
    for _ in range(600):
        video: dict[str, Any] = client.get(f"/v1/videos/{video_id}").json()
        if video["status"] not in ("queued", "in_progress"):
            return video
        time.sleep(0.1)
    raise AssertionError(f"still {video['status']} after a minute: {video}")


def test_a_restart_keeps_jobs_clips_and_keys_and_leaves_nothing_running(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as stack, client_of(stack) as client:
        done = create(client)
        assert wait_for(client, done)["status"] == "completed"
        clip = client.get(f"/v1/videos/{done}/content").content
        running = create(client, steps=200)
        queued = [create(client) for _ in range(4)]
        while client.get(f"/v1/videos/{running}").json()["progress"] == 0:
            time.sleep(0.05)
        everything = stack.processes()
        assert len(everything) > 5
        assert stack.interrupt() == 0
        assert gone(everything) == []
        assert stack.admin_key is not None

    with up(data_dir) as again, client_of(again) as client:
        assert (again.api_key, again.admin_key) == (stack.api_key, None)
        assert client.get(f"/v1/videos/{done}/content").content == clip
        for video_id in (running, *queued):
            assert wait_for(client, video_id)["status"] == "completed"
        assert client.get(f"/v1/videos/{running}").json()["attempts"] == 1


def test_a_data_directory_serves_one_stack_at_a_time(stack: Stack) -> None:
    data_dir = _data_dir_of(stack)
    second = subprocess.run(
        [str(REELSERVE), "up", "--port", "0", "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_env(),
    )
    assert second.returncode == 1
    assert f"in use by process {stack.process.pid}" in second.stderr
    assert "--data-dir" in second.stderr


def test_a_port_in_use_is_named(stack: Stack, tmp_path: Path) -> None:
    port = stack.url.rpartition(":")[2]
    second = subprocess.run(
        [str(REELSERVE), "up", "--port", port, "--data-dir", str(tmp_path / "data"), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_env(),
    )
    assert second.returncode == 1
    error = json.loads(second.stdout)["error"]
    assert f":{port}" in error["message"]
    assert "--port" in error["message"]


def _data_dir_of(stack: Stack) -> Path:
    arguments = stack.process.args
    assert isinstance(arguments, list)
    return Path(str(arguments[arguments.index("--data-dir") + 1]))


def test_secrets_are_readable_by_the_owner_alone(stack: Stack) -> None:
    data_dir = _data_dir_of(stack)
    for name in ("api-key", "redis/redis.conf"):
        assert (data_dir / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"REELSERVE_MODELS": '["none"]'}, "no model 'none' in the catalog"),
        ({"REELSERVE_PORT": "many"}, "REELSERVE_PORT"),
        ({"REELSERVE_MODELS": '["wan2.1-t2v-1.3b"]'}, "need 1 GPU(s) and this machine has 0"),
        (
            {"REELSERVE_MODELS": '["unbuilt"]', "REELSERVE_CATALOG_DIRS": '["{tmp}/catalog"]'},
            "there is no checkpoint in",
        ),
    ],
)
def test_a_stack_that_cannot_start_says_why_and_leaves_nothing(
    tmp_path: Path, env: dict[str, str], says: str
) -> None:
    entry = yaml.safe_load((ROOT / "deployments/catalog/demo-wan.yaml").read_text())
    entry |= {"id": "unbuilt", "aliases": [], "weights": {"path": "/nowhere"}}
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "unbuilt.yaml").write_text(yaml.safe_dump(entry))
    env = {name: value.replace("{tmp}", str(tmp_path)) for name, value in env.items()}
    arguments = [str(REELSERVE), "up", "--data-dir", str(tmp_path / "data")]
    if "REELSERVE_PORT" not in env:
        arguments += ["--port", "0"]
    failed = subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, env={**clean_env(), **env}
    )
    assert failed.returncode == 1
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr
