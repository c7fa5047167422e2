"""What a replica says is where an operator finds it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from deployments.logs import JsonLines, redacted, rfc3339
from serving import context

SAYS = """
import logging, threading, warnings
from deployments.ingress import Ingress
from serving import context
Ingress([])
with context.bound(request_id="req_1"):
    context.bind(job_id="video_1")
    logging.getLogger("quota.payments.payments").info("evt_1 is of another cell")
logging.getLogger("httpx").info("HTTP Request: GET https://api.example/?key=secret")
logging.getLogger("redis").warning("away\\n{really}")
warnings.warn("old")
def fail():
    raise ValueError("lost: \\u00e9")
thread = threading.Thread(target=fail, name="engine")
thread.start()
thread.join()
"""


def said(**env: str) -> list[str]:
    """In a process of its own, as Ray starts it: here, pytest listens."""
    done = subprocess.run(
        [sys.executable, "-c", SAYS],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr.splitlines()


def test_an_ingress_says_what_it_did_and_of_others_only_what_is_wrong_in_json() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in said()]
    about = [(line["level"], line["logger"], line["message"].partition("\n")[0]) for line in lines]
    assert about[:2] == [
        ("INFO", "quota.payments.payments", "evt_1 is of another cell"),
        ("WARNING", "redis", "away"),
    ]
    assert [each[:2] for each in about[2:]] == [
        ("WARNING", "py.warnings"),
        ("CRITICAL", "deployments.logs"),
    ]
    assert lines[1]["message"] == "away\n{really}"
    assert lines[-1]["message"] == "the thread engine ended"
    assert lines[-1]["exception"].startswith("Traceback")
    assert lines[-1]["exception"].endswith("ValueError: lost: é")
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["role"] == "ingress"
        assert line["replica"].startswith("pid-")
    ids = [(line.get("request_id"), line.get("job_id")) for line in lines]
    assert ids == [("req_1", "video_1"), (None, None), (None, None), (None, None)]


def test_text_is_there_for_whoever_reads_it_with_their_own_eyes() -> None:
    first = said(REELSERVE_LOGS="text")[0].split(" ", 2)[2]
    assert first == (
        "INFO quota.payments.payments: evt_1 is of another cell [request_id=req_1 job_id=video_1]"
    )


def test_the_time_is_utc_in_milliseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_700_000_000.0126) == "2023-11-14T22:13:20.012Z"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"key rsk_0123456789ab_{'f' * 40} is old", "key rsk_0123456789ab_… is old"),
        (f"rsk_admin_{'f' * 40}", "rsk_admin_…"),
        (f"sk_live_{'a1B' * 8}", "sk_live_…"),
        (f"whsec_{'a1B' * 8}.", "whsec_…."),
        ("redis://:pass@host/0 and s3://bucket/prefix", "redis://…@host/0 and s3://bucket/prefix"),
        ("a task_of_mine_that_has_a_long_name", "a task_of_mine_that_has_a_long_name"),
        ("GET /v1/videos/video_0123456789abcdef", "GET /v1/videos/video_0123456789abcdef"),
        ("http://127.0.0.1:8000/a:b@c", "http://127.0.0.1:8000/a:b@c"),
    ],
)
def test_no_line_keeps_a_secret(text: str, kept: str) -> None:
    assert redacted(text) == kept


def test_no_id_can_pass_for_another_field_s_value() -> None:
    record = logging.makeLogRecord(
        {"msg": '{"level": "x"}', "levelname": "INFO", "name": "serving"}
    )
    with context.bound(job_id='video_1", "level": "y'):
        line = json.loads(JsonLines({"role": "replica"}).format(record))
    assert (line["level"], line["message"]) == ("INFO", '{"level": "x"}')
    assert (line["job_id"], line["role"]) == ('video_1", "level": "y', "replica")
