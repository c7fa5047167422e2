"""``reelserve up``: what it prints, what it keeps, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.collector import Collector, collecting
from tests.e2e.stacks import REELSERVE, Stack, clean_env, create, gone, up, wait_for
from tests.triton import triton

ROOT = Path(__file__).parents[2]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def test_a_restart_keeps_jobs_clips_and_keys_and_leaves_nothing_running(
    tmp_path: Path, collector: Collector
) -> None:
    data_dir = tmp_path / "data"
    # So that spans are sent by whoever leaves, when it leaves.
    traces = {"REELSERVE_TRACES": "otlp", "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    env = {**traces, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    with up(data_dir, env=env) as stack, stack.client() as client:
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
        admin = {"authorization": f"Bearer {stack.admin_key}"}

    with up(data_dir, env=env) as again, again.client() as client:
        assert (again.api_key, again.admin_key) == (stack.api_key, None)
        local = client.get("/v1/admin/users/local", headers=admin).json()
        assert local["tier"] == "unlimited"
        assert client.get(f"/v1/videos/{done}/content").content == clip
        for video_id in (running, *queued):
            assert wait_for(client, video_id)["status"] == "completed"
        assert client.get(f"/v1/videos/{running}").json()["attempts"] == 1
        assert again.interrupt() == 0

    # Every span arrived, and what was handed over went on in its trace.
    (submit,) = [each for each in collector.named("submit") if each.attributes["job_id"] == running]
    leases = [each for each in collector.children(submit) if each.name == "lease"]
    outcomes = [each.attributes["outcome"] for each in leases]
    assert (outcomes[0], outcomes[-1]) == ("yielded", "completed")
    assert len({each.of["service.instance.id"] for each in leases}) == 2
    completed = [e for e in collector.named("lease") if e.attributes["outcome"] == "completed"]
    assert {each.attributes["job_id"] for each in completed} == {done, running, *queued}


def test_a_killed_stack_starts_again_on_its_port_with_its_jobs(tmp_path: Path) -> None:
    with up(tmp_path / "data") as stack, stack.client() as client:
        done = create(client)
        assert wait_for(client, done)["status"] == "completed"
        waiting = [create(client, steps=100) for _ in range(2)]
        stack.process.kill()
        stack.process.wait()
        port = int(stack.url.rpartition(":")[2])
    with up(tmp_path / "data", port=port) as again, again.client() as client:
        assert again.url == stack.url
        assert client.get(f"/v1/videos/{done}/content").status_code == 200
        for video_id in waiting:
            assert wait_for(client, video_id)["status"] == "completed"


def test_what_a_person_sees(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"data_dir: {tmp_path / 'data'}\nport: 0\ningress_replicas: 1\n")
    process = subprocess.Popen(
        [str(REELSERVE), "up", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**clean_env(), "REELSERVE_ADMIN_KEY": "my-admin-key"},
    )
    assert process.stdout is not None
    try:
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            said += line
        url = re.search(r"^reelserve ready at (http://\S+)$", said, re.MULTILINE)
        assert url is not None
        assert re.search(r"^API key: rsk_", said, re.MULTILINE)
        assert "dmin key" not in said, "it was given one"
        admin = {"authorization": "Bearer my-admin-key"}
        assert httpx.get(f"{url[1]}/v1/admin/keys", headers=admin).status_code == 200
        # The curl line works as it stands: here without curl, which not every machine has.
        line = said[said.index("curl ") : said.index("or, in another")].replace("\\\n", " ")
        words = shlex.split(line)
        flags = list(zip(words[2::2], words[3::2], strict=True))
        headers = dict(value.split(": ", 1) for flag, value in flags if flag == "-H")
        body = dict(flags)["-d"]
        answer = httpx.post(words[1], headers=headers, content=body)
        assert answer.status_code == 200, answer.text
        # A terminal's Ctrl-C goes to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_a_model_server_that_is_away_is_named_until_it_comes(tmp_path: Path) -> None:
    printed = tmp_path / "printed"

    def wait_until_said(text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in printed.read_text():
            assert process.poll() is None, printed.read_text()
            assert time.monotonic() < deadline, printed.read_text()
            time.sleep(0.05)

    with triton(tmp_path / "triton", "speech", "speech_voices", "upscale") as server:
        server.kill()
        with printed.open("wb") as file:
            process = subprocess.Popen(
                [str(REELSERVE), "up", "--port", "0", "--data-dir", str(tmp_path / "data")],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**clean_env(), "REELSERVE_TRITON_URL": server.url},
            )
        try:
            for model in ("speech", "upscale"):
                wait_until_said(f"The model server's '{model}' cannot be reached at {server.url}")
            assert "reelserve ready" not in printed.read_text()
            server.start()
            wait_until_said("reelserve ready at http://")
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


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
            {"REELSERVE_PAYMENTS_PROVIDER": "sandbox", "REELSERVE_HOST": "::"},
            "use --host 127.0.0.1",
        ),
        (
            {
                "REELSERVE_PAYMENTS_PROVIDER": "stripe",
                "REELSERVE_PAYMENTS_STRIPE_WEBHOOK_SECRETS": "whsec_x",
            },
            "REELSERVE_PAYMENTS_STRIPE_SECRET_KEY must be set",
        ),
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
