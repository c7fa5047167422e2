"""The load test and the benchmarks, briefly: what they find is right, however fast it was."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.stacks import REELSERVE, Stack, clean_env

FIGURES = {"p50_ms", "p95_ms", "p99_ms", "max_ms"}


def run(
    *arguments: str, env: dict[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(REELSERVE), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=env or clean_env(),
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def answer(*arguments: str, **given: Any) -> Any:
    """What a command says as JSON, which must be all it says on stdout."""
    return json.loads(run(*arguments, "--json", **given).stdout)


def test_steady_users_make_clips_without_a_failure(stack: Stack) -> None:
    value = answer("loadtest", "steady", "--users", "2", "--seconds", "4", env=stack.client_env)
    assert value["url"] == stack.url
    assert value["failures"] == 0
    assert value["errors"] == []
    jobs = value["jobs"]
    assert jobs["completed"] == jobs["submitted"] > 0
    assert jobs["failed"] == jobs["unfinished"] == 0
    for entry in value["entries"]:
        assert {"requests", "failures", "p50_ms", "p95_ms", "p99_ms", "per_s"} <= entry.keys()


def test_steady_prints_a_table(stack: Stack) -> None:
    said = run("loadtest", "steady", "--users", "1", "--seconds", "2", env=stack.client_env)
    assert "submission to clip" in said.stdout
    assert "users for 2 s" in said.stderr


def test_steady_says_in_a_line_that_nobody_is_there() -> None:
    env = {**clean_env(), "REELSERVE_URL": "http://127.0.0.1:1", "REELSERVE_API_KEY": "rsk_x"}
    said = run("loadtest", "steady", "--seconds", "1", env=env, code=1)
    assert said.stdout == ""
    assert said.stderr.count("\n") == 1
    assert "cannot reach Reelserve" in said.stderr


def test_steady_can_start_its_own_stack() -> None:
    value = answer("loadtest", "steady", "--start", "--users", "2", "--seconds", "3")
    assert value["ok"]
    assert value["jobs"]["completed"] > 0


def test_a_spike_is_followed_until_its_last_job(stack: Stack, tmp_path: Path) -> None:
    picture = tmp_path / "spike.svg"
    few = ("--jobs", "6", "--over", "2", "--quiet", "1", "--steps", "4", "--until-idle")
    value = answer("loadtest", "spike", *few, "--svg", str(picture), env=stack.client_env)
    assert value["ok"], value["errors"]
    assert (value["url"], value["model"]) == (stack.url, "demo-wan")
    assert (value["jobs"]["completed"], value["jobs"]["attempts_max"]) == (6, 1)
    assert 0 <= value["queue_wait_s"]["p50"] <= value["total_s"]["p50"] <= value["total_s"]["max"]
    assert value["timeline"][0]["t_s"] < 0 < value["last_job_s"] <= value["timeline"][-1]["t_s"] + 2
    # This pool always has one replica.
    assert (value["replicas"]["before"], value["replicas"]["peak"]) == (1, 1)
    assert "demo-wan" in picture.read_text()


def test_every_submission_of_the_benchmark_is_in_redis() -> None:
    value = answer("bench", "submit", "--rate", "20", "--seconds", "2")
    assert FIGURES | {"per_s_max"} <= value.keys()
    assert FIGURES | {"per_s_max"} <= value["baseline"].keys()
    assert value["errors"] == 0
    assert value["phases"]["submit"]["open_loop"]["answered"] == 40
    # All of them, and none was run: the replica was stopped.
    assert value["in_redis"] == {"queued": value["acknowledged"]}
    assert value["machine"]["cores"] > 0


def test_the_overhead_of_a_job_is_measured() -> None:
    # Whatever the environment says, the stack is its own: here, somebody's Redis.
    env = {**clean_env(), "REELSERVE_REDIS_URL": "redis://127.0.0.1:1"}
    value = answer("bench", "overhead", "--jobs", "2", env=env)
    assert value.keys() >= FIGURES
    assert value["jobs"] == 2
    assert value["rows"].keys() >= {"overhead", "overhead_by_record", "submit", "queued", "stages"}
    assert value["rows"]["overhead"]["p50_ms"] > 0
