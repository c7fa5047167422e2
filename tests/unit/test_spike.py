"""`reelserve loadtest spike`: its arithmetic, and all of it against a server that plays a pool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from loadtest import spike
from loadtest.errors import LoadTestError
from loadtest.spike import Plan, jobs_of
from loadtest.spike_summary import Look, Outcome, replicas, summarise
from tests.scripted import reelserve

MODEL = {
    "id": "demo-wan",
    "sizes": ["96x96", "1280x720", "256x144", "128x128", "720x1280"],
    "seconds": [1, 2, 4, 8],
    "steps": {"default": 20, "min": 1, "max": 30},
}


def look(t_s: float, ready: int, **more: Any) -> Look:
    return Look(t_s, ready, queued=0, in_progress=0, **more)


def job(status: str = "completed", queued_s: float = 1.0, total_s: float = 3.0) -> dict[str, Any]:
    timings = {"queued_s": queued_s, "total_s": total_s} if status == "completed" else None
    return {"id": "v", "status": status, "attempts": 1, "timings": timings}


def outcome(**changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "looks": [look(-1, 1), look(1, 2)],
        "jobs": [job()],
        "unfinished": 0,
        "refused": {},
        "errors": {},
        "last_job_s": 4.0,
        "floor": 0,
        "timed_out": False,
        "until_idle": False,
        **changes,
    }
    return Outcome(**fields)


# Its arithmetic.


def test_it_says_when_replicas_came_and_went() -> None:
    counts = [(-2, 3), (-1, 1), (1, 1), (4, 2), (6, 4), (8, 3), (9, 4), (20, 2), (31, 0), (32, 0)]
    assert replicas([look(*each) for each in counts], floor=0, last_job_s=12.0) == {
        "before": 1,
        "floor": 0,
        "peak": 4,
        "first_added_s": 4,
        "last_added_s": 6,
        "back_at_floor_s": 31,
    }


def test_without_a_quiet_the_first_look_is_what_was_before() -> None:
    assert replicas([look(0, 2), look(1, 3)], floor=0, last_job_s=None)["before"] == 2
    assert replicas([], floor=0, last_job_s=None)["peak"] == 0


def test_it_says_so_when_no_replica_came_or_none_went() -> None:
    still = replicas([look(-1, 2), look(1, 2), look(2, 2)], floor=1, last_job_s=1.0)
    assert (still["before"], still["peak"]) == (2, 2)
    assert still["first_added_s"] is still["last_added_s"] is still["back_at_floor_s"] is None


def test_a_pool_is_not_back_before_the_last_job_ended() -> None:
    looks = [look(-1, 0), look(1, 0), look(5, 1), look(9, 0)]
    assert replicas(looks, floor=0, last_job_s=7.0)["back_at_floor_s"] == 9
    assert replicas(looks, floor=0, last_job_s=None)["back_at_floor_s"] is None


def test_waits_are_those_of_jobs_that_made_a_clip() -> None:
    jobs = [*(job(queued_s=n, total_s=10 * n) for n in range(1, 21)), job("failed")]
    found = summarise(outcome(jobs=jobs))
    assert found["queue_wait_s"] == {"p50": 10, "p95": 19, "max": 20}
    assert found["total_s"] == {"p50": 100, "p95": 190, "max": 200}
    assert summarise(outcome(jobs=[]))["total_s"] is None


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"refused": {"queue_full": 3}}, True),
        ({"jobs": [job(), job("failed")]}, False),
        ({"jobs": [job(), job("expired")]}, False),
        ({"unfinished": 1}, False),
        ({"errors": {"POST /v1/videos was answered with 500": 1}}, False),
        ({"timed_out": True}, False),
    ],
)
def test_refusals_are_no_failures_and_all_else_is(changes: dict[str, Any], ok: bool) -> None:
    assert summarise(outcome(**changes))["ok"] is ok


def test_objectives_have_a_share_where_any_job_had_them() -> None:
    counted = {"first_step": {"attained": 9.0, "missed": 3.0}, "done": {"attained": 0.0}}
    found = summarise(outcome(objectives=counted))["objectives"]
    assert found["first_step"] == {"attained": 9, "missed": 3, "share": 0.75}
    assert found["done"]["share"] is None
    assert summarise(outcome())["objectives"] is None


def test_jobs_are_mixed_small_and_the_same_each_time() -> None:
    plan = Plan("http://h", "k", jobs=200)
    jobs = jobs_of(MODEL, plan)
    assert jobs == jobs_of(MODEL, plan)
    assert len({each["seed"] for each in jobs}) == 200
    assert {each["size"] for each in jobs} == {"96x96", "128x128", "256x144"}
    assert {each["seconds"] for each in jobs} == {"1", "2"}
    assert {each["steps"] for each in jobs} == {10, 20, 30}  # 40 are more than the model makes
    assert {each["steps"] for each in jobs_of(MODEL, Plan("", "", jobs=50, steps=4))} == {2, 4, 8}


# A whole spike.


@dataclass
class Pool:
    """Plays a server with one pool, where one more replica always starts and one leaves.

    A job ends the second time that it is listed; the pool grows by one at each look until three are
    ready, and shrinks so when all jobs have ended.
    """

    url: str = ""
    ready: int = 1
    refuse_every: int = 0
    fails: bool = False
    hangs: bool = False
    away: bool = False
    scaled: bool = True
    posts: list[dict[str, Any]] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)
    lists: list[dict[str, str]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if self.away and path in ("/v1/status", "/metrics") and self.posts:
            return 503, {"error": {"code": "service_unavailable", "message": "Away."}}
        match method, path:
            case "POST", "/v1/videos":
                return self._submit(body)
            case "GET", "/v1/videos":
                return 200, self._list(query)
            case "GET", "/v1/models":
                return 200, {"data": [MODEL]}
            case "GET", "/v1/models/sora-2":
                return 200, MODEL
            case "GET", "/v1/status":
                return 200, {"pools": {"demo-wan": self._status()}}
            case "GET", "/metrics":
                return 200, self._metrics()
            case "GET", "/v1/admin/autoscale":
                return 200, {"pools": [self._decided()]}
        return 404, {"error": {"code": "not_found", "message": f"no {path}"}}

    @property
    def _all_ended(self) -> bool:
        return not self.hangs and all(times > 1 for times in self.listed.values())

    def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.posts.append(body)
        if self.fails:
            return 500, {"error": {"code": "internal_error", "message": "A defect."}}
        if self.refuse_every and len(self.posts) % self.refuse_every == 0:
            return 429, {"error": {"code": "queue_full", "message": "Full."}}
        video_id = f"video_{len(self.posts):04}"
        self.listed[video_id] = 0
        return 200, {"id": video_id}

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        if "order" not in query:  # what was there before
            return {"data": [{"id": "video_0000"}], "has_more": False}
        self.lists.append(query)
        ids = sorted(each for each in self.listed if each > query["after"])
        page = ids[: int(query["limit"])]
        for each in page:
            self.listed[each] += 1
        data = [{**job(self._state(each)), "id": each} for each in page]
        return {"data": data, "has_more": len(ids) > len(page), "last_id": page[-1] if page else ""}

    def _state(self, video_id: str) -> str:
        return "completed" if self.listed[video_id] > 1 and not self.hangs else "in_progress"

    def _status(self) -> dict[str, Any]:
        if self.posts:
            self.ready = max(0, self.ready - 1) if self._all_ended else min(3, self.ready + 1)
        queued = sum(times < 1 for times in self.listed.values())
        states = ["starting", *["busy"] * self.ready, "draining"]
        return {
            "replicas": [{"state": state} for state in states],
            "queued": queued,
            "in_progress": 0,
        }

    def _metrics(self) -> str:
        name = "reelserve_slo_jobs_total"
        counts = {"attained": 100 + 3 * len(self.listed) // 4, "missed": 50 + len(self.listed) // 4}
        lines = [f"# TYPE {name} counter"]
        for outcome, count in counts.items():
            for model, each in (("demo-wan", count), ("another", 7)):
                labels = f'model="{model}",class="burst",objective="done",outcome="{outcome}"'
                lines.append(f"{name}{{{labels}}} {each}")
        return "\n".join([*lines, ""])

    def _decided(self) -> dict[str, Any]:
        seen = [{"queued_s": 2.0, "in_flight_s": 1.5}]
        decision = {"target": 3, "wanted": 4, "bound": "budget", "classes": seen}
        scaling = {"min_replicas": 0, "buffer": 0}
        return {
            "model": "demo-wan",
            "scaling": scaling if self.scaled else None,
            "decision": decision,
        }


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pool]:
    playing = Pool()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_it(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = urlsplit(self.path)
            with playing.lock:
                playing.keys.add(self.headers["authorization"])
                status, body = playing.answer(
                    self.command,
                    parts.path,
                    dict(parse_qsl(parts.query)),
                    json.loads(sent) if sent else None,
                )
            payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = handle_it

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    monkeypatch.setattr(spike, "LOOK_S", 0.05)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        playing.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("REELSERVE_URL", playing.url)
        monkeypatch.setenv("REELSERVE_API_KEY", "rsk_user")
        monkeypatch.delenv("REELSERVE_ADMIN_KEY", raising=False)
        monkeypatch.chdir(tmp_path)
        yield playing
        server.shutdown()


def plan(pool: Pool, **changes: Any) -> Plan:
    fields: dict[str, Any] = {"jobs": 8, "over_s": 0.2, "quiet_s": 0.3, "timeout_s": 60, **changes}
    return Plan(pool.url, "rsk_user", **fields)


def run(pool: Pool, **changes: Any) -> dict[str, Any]:
    said: list[str] = []
    value = spike.run(plan(pool, **changes), said.append)
    assert said[0].startswith("quiet for")
    return value


def test_every_job_is_submitted_once_and_waited_for(pool: Pool) -> None:
    value = run(pool)
    assert value["ok"]
    assert (value["model"], value["jobs_planned"]) == ("demo-wan", 8)
    assert value["jobs"]["completed"] == 8
    key = [(each["seed"], each["model"]) for each in pool.posts]
    assert len(set(key)) == len(key) == 8
    assert value["replicas"]["before"] == 1
    assert value["replicas"]["peak"] == 3
    assert value["replicas"]["first_added_s"] >= 0
    # Six attained and two missed meanwhile; what was before and other models do not count.
    assert value["objectives"]["done"] == {"attained": 6, "missed": 2, "share": 0.75}
    times = [each["t_s"] for each in value["timeline"]]
    assert times == sorted(times)
    assert times[0] < 0 < times[-1]
    assert value["timeline"][0]["target"] is None


def test_with_an_operators_key_it_sees_what_the_autoscaler_wants(pool: Pool) -> None:
    value = run(pool, admin_key="rsk_admin", until_idle=True)
    assert pool.keys == {"Bearer rsk_user", "Bearer rsk_admin"}
    seen = value["timeline"][-1]
    assert (seen["target"], seen["wanted"], seen["bound"], seen["work_s"]) == (3, 4, "budget", 3.5)
    # The operator said that nothing stays, though one was there before.
    assert (value["replicas"]["floor"], value["timeline"][-1]["ready"]) == (0, 0)
    assert value["replicas"]["back_at_floor_s"] > value["last_job_s"]


def test_without_one_the_floor_is_what_was_there_before(pool: Pool) -> None:
    value = run(pool, until_idle=True)
    assert (value["replicas"]["floor"], value["timeline"][-1]["ready"]) == (1, 1)


def test_what_ended_first_is_not_asked_for_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.spike_server.PAGE", 3)
    value = run(pool, jobs=10, over_s=0)
    assert value["jobs"]["completed"] == 10
    assert pool.lists[0]["after"] == "video_0000"
    assert len({each["after"] for each in pool.lists}) > 3


def test_refused_jobs_are_not_submitted_again(pool: Pool) -> None:
    pool.refuse_every = 4
    value = run(pool)
    assert value["ok"]
    assert len(pool.posts) == 8
    assert (value["jobs"]["completed"], value["jobs"]["refused"]) == (6, 2)
    assert value["refused"] == {"queue_full": 2}


def test_a_server_that_fails_makes_the_test_fail(pool: Pool) -> None:
    pool.fails = True
    value = run(pool)
    assert not value["ok"]
    assert value["jobs"]["completed"] == value["jobs"]["unfinished"] == 0
    (error,) = value["errors"]
    assert error["count"] == 8
    assert "was answered with 500: A defect." in error["error"]


def test_it_ends_even_if_the_jobs_do_not(pool: Pool) -> None:
    pool.hangs = True
    value = run(pool, timeout_s=1.5)
    assert not value["ok"]
    assert value["timed_out"]
    assert value["jobs"]["unfinished"] == 8


def test_a_server_that_goes_away_is_borne_and_said_once(pool: Pool) -> None:
    pool.away = True
    said: list[str] = []
    value = spike.run(plan(pool, timeout_s=1.5), said.append)
    assert value["timed_out"]
    assert value["objectives"] is None
    assert sum("GET /v1/status was answered with 503" in each for each in said) == 1


def test_a_model_that_is_not_there_is_said_at_once(pool: Pool) -> None:
    assert run(pool, model="sora-2", jobs=1)["model"] == "demo-wan"
    with pytest.raises(LoadTestError, match="no /v1/models/other"):
        run(pool, model="other")


def test_the_command_prints_a_picture_and_the_figures(pool: Pool, tmp_path: Path) -> None:
    quick = ("--jobs", "8", "--over", "0.2", "--quiet", "0.3")
    result = reelserve("loadtest", "spike", *quick, "--svg", "spike.svg")
    assert result.exit_code == 0, result.output
    assert "demo-wan: 8 completed, 0 failed, 0 refused, 0 unfinished" in result.stdout
    assert "█" in result.stdout
    assert "wait in the queue" in result.stdout
    assert "1 before, the first more after" in result.stdout
    assert "done 75% of 8" in result.stdout
    assert "quiet for 0.3 s" in result.stderr
    assert "demo-wan" in (tmp_path / "spike.svg").read_text()

    pool.fails = True
    failed = reelserve("loadtest", "spike", *quick, "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["jobs"]["completed"] == 0


def test_the_command_says_in_a_line_that_nobody_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REELSERVE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("REELSERVE_API_KEY", "rsk_user")
    result = reelserve("loadtest", "spike")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "cannot reach Reelserve" in result.stderr
