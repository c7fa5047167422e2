"""`reelserve autoscale`, against a server that answers from a script."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import autoscale as command
from deployments.cli.autoscale_formula import formula
from tests.decisions import decision
from tests.scripted import Answer, Script, error, reelserve

ASK, HISTORY = "GET /v1/admin/autoscale", "GET /v1/admin/autoscale/history"
KNOBS = {"min_replicas": 0, "max_replicas": 4, "buffer": 1}
START_S_MAX = 30


def shown(age_s: float = 0.5, at_ms: int = 1_790_000_000_000, **changes: Any) -> dict[str, Any]:
    """A decision as the API shows it."""
    written = decision(**changes)
    objectives_s = written.pop("objectives_s")
    sample = written.pop("sample") or {}
    classes = [
        {"class": name, "objective_s": objectives_s[name], **seen}
        for name, seen in sample.pop("classes", {}).items()
    ]
    return {**written, "sample": sample or None, "classes": classes, "age_s": age_s, "at_ms": at_ms}


def pool(
    decided: Mapping[str, Any] | None, model: str = "demo-wan", *, scaled: bool = True
) -> dict[str, Any]:
    return {
        "model": model,
        "scaling": KNOBS if scaled else None,
        "replicas": None if scaled else 2,
        "decision": decided,
    }


def answer(*pools: dict[str, Any]) -> Answer:
    return Answer({"object": "autoscale", "pools": list(pools)})


def line(at_ms: int, age_s: float, **changes: Any) -> dict[str, Any]:
    figures = {"target": 4, "ready": 1, "wanted": 4, "bound": "need", "work_s": 132.5, "jobs": 8}
    return {"at_ms": at_ms, "age_s": age_s, "pools": {"demo-wan": {**figures, **changes}}}


def history(*lines: dict[str, Any]) -> Answer:
    return Answer({"object": "list", "data": list(lines)})


@pytest.fixture
def watched(api: Script, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A pool that grows: 1, then 2 and then 4 of 4 replicas are ready."""
    monkeypatch.setattr(command, "REFRESH_S", 0.1)
    ready = [shown(at_ms=1000 + 1000 * n, ready=count) for n, count in enumerate((1, 2, 4))]
    api.on(ASK, *(answer(pool(each), pool(None, "fixed", scaled=False)) for each in ready))
    api.on(
        HISTORY,
        history(line(1000, 0.1), line(500, 0.6)),
        history(line(2000, 0.1, ready=2), line(1000, 1.1)),
        history(line(3000, 0.1, ready=4), line(2000, 1.1, ready=2)),
    )
    return api


def test_explain_says_what_was_seen_the_formula_and_the_bound(api: Script) -> None:
    api.on(ASK, answer(pool(shown(target=2, bound="budget", why="the budget gives 2"))))
    result = reelserve("autoscale", "explain", "sora-2")
    assert result.exit_code == 0, result.stderr
    assert api.requests[ASK] == ["/v1/admin/autoscale?model=sora-2"]
    said = result.stdout
    assert "demo-wan: 2 replicas, instead of 1; 1 ready; decided 0.5 s ago" in said
    assert "the budget gives 2" in said
    assert "5 jobs, 90.0 s" in said
    assert "budget, the budget that all pools share → 2, where 4 would be wanted" in said
    assert "132.5 GPU-s of burst and standard / 1.00 / 180.0 s left of 180 s → 3" in said
    assert "and a buffer of 1 → 4" in said
    assert "0 to 4 replicas, buffer 1" in said
    assert "all pools together 8 cpus" in said
    assert "retry" not in said


def test_explain_prints_the_api_s_answer_as_json(api: Script) -> None:
    api.on(ASK, answer(pool(shown())))
    result = reelserve("autoscale", "explain", "--json")
    assert json.loads(result.stdout) == answer(pool(shown())).body


def test_explain_says_who_does_the_work_where_no_replica_of_ours_does(api: Script) -> None:
    server = {"model": "upscale", "url": "triton:8001", "request_s": 0.03}
    api.on(ASK, answer({**pool(shown(target=3), "triton/upscale"), "server": server}))
    said = reelserve("autoscale", "explain").stdout
    assert "triton/upscale: 3 servers should be there, 1 are; decided 0.5 s ago" in said
    assert "'upscale' at triton:8001, 0.03 s for a request" in said
    assert "whoever runs it scales it" in " ".join(said.split())


def test_explain_says_when_the_next_replica_is_tried(api: Script) -> None:
    failing = shown(age_s=2.0, bound="backoff", retry_in_s=40.0)
    failing["sample"]["start_failures"] = 3
    api.on(ASK, answer(pool(failing)))
    said = reelserve("autoscale", "explain").stdout
    assert "the next replica is tried in 38 s; the last 3 failed to start" in said


def test_explain_tells_apart_why_nothing_is_decided(api: Script) -> None:
    held = shown(sample=None, sample_age_s=None, bound="hold", why="no fresh sample: 1 is kept")
    api.on(
        ASK,
        answer(
            pool(None, "off", scaled=False),
            pool(None, "new"),
            pool(shown(age_s=600), "left"),
            pool(held, "blind"),
        ),
    )
    said = reelserve("autoscale", "explain").stdout
    assert "off: autoscaling is off" in said
    assert "always 2 replicas" in said
    assert "new: no decision yet" in said
    assert "The autoscaler does not decide any more: this is 10 min old." in said
    assert "What is queued was never seen." in said
    assert "hold, no fresh sample: nothing is changed" in said


def test_a_model_that_is_not_served_is_an_error(api: Script) -> None:
    api.on(ASK, error(400, "model_not_found", "There is no model 'x'."))
    result = reelserve("autoscale", "explain", "x")
    assert result.exit_code == 1
    assert "There is no model 'x'." in result.stderr


@pytest.mark.parametrize(
    ("changes", "demand", "text"),
    [
        ({}, {"by": "idle", "need": 0}, "nothing to do → 0"),
        ({}, {"by": "drain", "critical": "", "need": 1}, "at least one, for 8 jobs → 1"),
        ({}, {"by": "jobs", "need": 8}, "no more than jobs by the time that a new one is ready"),
        (
            {},
            {"by": "sustain", "slow": 1.5, "rate": 0.5, "need": 4},
            "1.50 GPU-s that come each second / (0.50 that a replica does × 0.9) → 4",
        ),
        (
            {"ready": 0, "before": 0},
            {"by": "drain", "critical": "burst", "need": 2},
            "30.0 GPU-s of burst / 1.00 / (26.0 s left of 30 s − 6.0 s of cold start) → 2",
        ),
        (
            {},
            {"by": "drain", "critical": "burst", "need": 2},
            "1 ready + (30.0 GPU-s of burst / 1.00 − 1 × 26.0 s) / "
            "(26.0 s left of 30 s − 6.0 s of cold start) → 2",
        ),
        (
            {"ready": 1, "before": 3},
            {"by": "drain", "critical": "burst", "need": 3},
            "1 ready, 2 starting + (30.0 GPU-s of burst / 1.00 − what these do in 26.0 s) / "
            "(26.0 s left of 30 s − 6.0 s of cold start) → 3",
        ),
        (
            {},
            {"by": "drain", "critical": "burst", "rate": 0.25, "need": 2},
            "1 ready + (52.0 s, one replica a job, of 30.0 GPU-s of burst − 1 × 26.0 s) / ",
        ),
        (
            {},
            {"by": "drain", "critical": "burst", "cold_start_s": 60.0, "need": 2},
            "/ 15.0 s, as 60.0 s of cold start leave less of the objective → 2",
        ),
        (
            {},
            {"by": "horizon", "critical": "standard", "need": 1},
            "(132.5 GPU-s of burst and standard / 1.00 + 4.50 that come each second × 6.0 s of "
            "cold start / 1.00 − 1 ready × 6.0 s) / 180 s → 1",
        ),
        ({}, {"by": "magic", "need": 3}, "magic → 3"),
    ],
)
def test_the_formula_has_its_figures(
    changes: dict[str, Any], demand: dict[str, Any], text: str
) -> None:
    decided = shown(**changes)
    decided["demand"].update(demand)
    decided["scaling"] = None
    assert text in formula(decided)


def test_watch_prints_a_line_for_each_change_where_nobody_draws(watched: Script) -> None:
    result = reelserve("autoscale", "watch", "--seconds", "2")
    assert result.exit_code == 0, result.stderr
    changes = result.stdout.splitlines()
    ready = [f"demo-wan: {count} ready, 4 asked for, 4 wanted; need: " for count in (1, 2, 4)]
    assert len(changes) == 3
    for change, text in zip(changes, ready, strict=True):
        assert text in change
    # The whole history once, and then only what is new.
    limits = [path.partition("limit=")[2] for path in watched.requests[HISTORY]]
    assert limits[:3] == ["900", "60", "60"]


def test_watch_as_json_prints_the_history_once(watched: Script) -> None:
    result = reelserve("autoscale", "watch", "--seconds", "2", "--json")
    value = json.loads(result.stdout)
    ready = [each["pools"]["demo-wan"]["ready"] for each in value["data"]]
    assert ready == [4, 2, 1, 1]
    assert [each["at_ms"] for each in value["data"]] == [3000, 2000, 1000, 500]
    assert value["data"][-1]["age_s"] == pytest.approx(2.6)


def test_watch_asks_for_everything_again_after_a_gap(watched: Script) -> None:
    gap = history(line(90_000, 0.1), line(89_000, 1.1))
    watched.on(HISTORY, history(line(1000, 0.1)), gap, gap)
    result = reelserve("autoscale", "watch", "--seconds", "1", "--json")
    limits = [path.partition("limit=")[2] for path in watched.requests[HISTORY]]
    assert limits[:3] == ["900", "60", "900"]
    assert len(json.loads(result.stdout)["data"]) == 3


def test_watch_leaves_a_picture(watched: Script, tmp_path: Path) -> None:
    result = reelserve("autoscale", "watch", "--seconds", "0", "--svg", "spike.svg")
    assert result.exit_code == 0, result.stderr
    picture = (tmp_path / "spike.svg").read_text()
    assert "demo-wan" in picture
    assert "█" in picture


def test_watch_needs_something_to_watch(api: Script) -> None:
    api.on(ASK, answer(pool(None, "fixed", scaled=False)))
    api.on(HISTORY, history())
    result = reelserve("autoscale", "watch")
    assert result.exit_code == 1
    assert "autoscaling is off" in result.stderr


def test_watch_bears_a_server_that_is_away_for_a_moment(watched: Script) -> None:
    away = error(503, "service_unavailable", "The job store does not answer.")
    watched.answers[ASK].insert(1, away)
    result = reelserve("autoscale", "watch", "--seconds", "1")
    assert result.exit_code == 0
    assert "The job store does not answer." in result.stderr
    assert "2 ready" in result.stdout


def test_watch_draws_in_a_terminal_until_ctrl_c(watched: Script) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli.main", "autoscale", "watch"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"},
    )
    os.close(theirs)
    drawn = ""
    try:
        while "2 ready" not in drawn:
            drawn += os.read(ours, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while True:
            try:
                os.read(ours, 65536)
            except OSError:  # how a terminal says that nobody writes to it any more
                break
        assert process.wait(START_S_MAX) == 0, process.stderr
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        assert process.stderr is not None
        process.stderr.close()
    assert "demo-wan: 1 ready" in drawn
    assert "░" in drawn
    assert "5 min ago" in drawn
