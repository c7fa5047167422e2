"""What the replicas of a stack leave in their files of logs."""

from __future__ import annotations

from tests.e2e.stacks import Stack, create, wait_for


def test_each_line_is_json_and_leads_from_the_request_to_the_job_and_its_attempt(
    stack: Stack,
) -> None:
    with stack.client() as client:
        client.headers["x-request-id"] = "req_to_follow"
        video = create(client)
        assert wait_for(client, video)["status"] == "completed"
        pool = client.get("/v1/status").json()["pools"]["demo-wan"]
    (accepted,) = [line for line in stack.logged("ingress") if line.get("job_id") == video]
    assert (accepted["request_id"], accepted["role"]) == ("req_to_follow", "ingress")
    assert accepted["message"] == "accepted: demo-wan, standard"
    about = [line for line in stack.logged("demo-wan") if line.get("job_id") == video]
    assert [line["message"].split(" ")[0] for line in about] == ["leased", "completed"]
    for line in about:
        assert (line["model"], line["role"], line["attempt"]) == ("demo-wan", "replica", 1)
        assert line["fence"] > 0
        assert line["replica"] in [each["id"] for each in pool["replicas"]]
    assert not any("trace_id" in line for line in (accepted, *about)), "nobody asked for traces"


def test_what_serve_says_is_json_too_and_no_message_is_a_line_of_ours(stack: Stack) -> None:
    for deployment in ("ingress", "demo-wan"):
        lines = stack.logged(deployment)
        assert any("Started initializing replica" in line["message"] for line in lines)
        assert any(line.get("logger") == "ray.serve" for line in lines)
        assert not any(line["message"].startswith("{") for line in lines)
