"""What the processes of a stack leave in their files of logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.stacks import Stack, create, wait_for


def logged(file: Path) -> list[dict[str, Any]]:
    """Its lines, but for those by which Ray finds out whose it is."""
    return [json.loads(line) for line in file.read_text().splitlines() if line[:1] != ":"]


def files_of(stack: Stack, deployment: str) -> list[Path]:
    actor = f":actor_name:ServeReplica:reelserve:{deployment}\n"
    return [file for file in stack.log_dir.glob("worker-*.err") if actor in file.read_text()]


def test_each_line_is_json_and_leads_from_the_request_to_the_job_and_its_attempt(
    stack: Stack,
) -> None:
    with stack.client() as client:
        client.headers["x-request-id"] = "req_to_follow"
        video = create(client)
        assert wait_for(client, video)["status"] == "completed"
    ingress = [line for file in files_of(stack, "ingress") for line in logged(file)]
    replica = [line for file in files_of(stack, "demo-wan") for line in logged(file)]
    (accepted,) = [line for line in ingress if line.get("job_id") == video]
    assert (accepted["request_id"], accepted["role"]) == ("req_to_follow", "ingress")
    about = [line for line in replica if line.get("job_id") == video]
    assert [line["message"].split(" ")[0] for line in about] == ["leased", "completed"]
    (replica_id,) = {line["replica"] for line in about}
    assert [file.name for file in files_of(stack, "demo-wan")] != []
    for line in about:
        assert (line["model"], line["attempt"]) == ("demo-wan", 1)
        assert line["fence"] > 0
        assert {"time", "level", "logger"} <= line.keys()
    with stack.client() as client:
        said = client.get("/v1/status").json()["pools"]["demo-wan"]["replicas"]
    assert replica_id in [each["id"] for each in said]


def test_what_serve_says_of_them_is_json_too(stack: Stack) -> None:
    files = [*(stack.log_dir / "serve").glob("replica_*.log")]
    lines = [line for file in files for line in logged(file)]
    assert {"reelserve"} <= {line.get("application") for line in lines}
