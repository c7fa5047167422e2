"""What the command line does by itself, against an HTTP server that answers from a script.

The server is real and so is the connection; its answers have the API's shape. Whether the
API really answers so is for the tests of the whole stack.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deployments.cli import client
from deployments.cli.main import app
from deployments.cli.output import when
from tests.scripted import KEY, Answer, Script, error, reelserve

VIDEO_ID = "video_" + "0123456789abcdef" * 2
CLIP = b"not really an MP4 " * 5000
INTERRUPT_S = 20  # to start Python and reach the first poll, on a busy machine


def video(status: str = "queued", **fields: Any) -> dict[str, Any]:
    return {
        "id": VIDEO_ID,
        "object": "video",
        "model": "demo-wan",
        "status": status,
        "progress": 0,
        "created_at": 1_790_000_000,
        "completed_at": None,
        "expires_at": None,
        "seconds": "4",
        "size": "96x96",
        "prompt": "a red ball",
        "remixed_from_video_id": None,
        "error": None,
        "negative_prompt": "",
        "seed": 7,
        "steps": 20,
        "guidance_scale": 5.0,
        "fps": 8,
        "phase": None,
        "step": 0,
        "attempts": 0,
        "service_tier": "auto",
        "class": "standard",
        "usage": {"gpu_seconds": 0.0, "from": "allowance"},
        "queue_position": None,
        "eta_seconds": None,
        "size_bytes": None,
        "timings": None,
        **fields,
    }


def queued(ahead: int = 0) -> dict[str, Any]:
    return video("queued", queue_position=ahead, eta_seconds=8.0)


def denoising(step: int) -> dict[str, Any]:
    return video(
        "in_progress", phase="denoise", step=step, progress=5 * step, attempts=1, eta_seconds=3.2
    )


def completed() -> dict[str, Any]:
    stages = ("queued_s", "encode_s", "denoise_s", "decode_s", "store_s", "total_s")
    return video(
        "completed",
        progress=100,
        attempts=1,
        completed_at=1_790_000_004,
        size_bytes=len(CLIP),
        timings=dict.fromkeys(stages, 0.5),
    )


def failed() -> dict[str, Any]:
    problem = {"code": "model_failed", "message": "The model raised while it made this clip."}
    return video("failed", attempts=3, error=problem)


def made_key(**fields: Any) -> dict[str, Any]:
    return {
        "object": "api_key",
        "id": "0123456789ab",
        "user": "ann",
        "scopes": ["generate", "read"],
        "created_at": 1_780_000_000,
        "previous_works_until": None,
        "key": KEY,
        **fields,
    }


@pytest.fixture
def finished(api: Script) -> Script:
    """A job that waits, runs and completes, and its clip."""
    ask = f"/v1/videos/{VIDEO_ID}"
    api.on("POST /v1/videos", Answer(queued(ahead=2), headers={"openai-poll-after-ms": "100"}))
    api.on(f"GET {ask}", Answer(queued(1)), Answer(denoising(12)), Answer(completed()))
    api.on(f"GET {ask}/content", Answer(CLIP, headers={"content-type": "video/mp4"}))
    return api


def test_submit_waits_and_downloads(finished: Script, tmp_path: Path) -> None:
    result = reelserve("submit", "a red ball", "--seed", "7", "--out", "ball.mp4")

    assert result.exit_code == 0, result.stderr
    assert finished.requests["POST /v1/videos"] == [{"prompt": "a red ball", "seed": 7}]
    assert (tmp_path / "ball.mp4").read_bytes() == CLIP
    # stdout: the path alone on its line, then the facts
    lines = result.stdout.splitlines()
    assert lines[0] == str(tmp_path / "ball.mp4")
    assert "denoise 0.50 s" in result.stdout
    assert "90.0 kB, 96x96" in result.stdout
    # stderr: how it went
    assert "queued, 2 ahead, about 8 s left" in result.stderr
    assert "denoise 12/20, about 3 s left" in result.stderr


def test_submit_with_json_prints_one_value(finished: Script, tmp_path: Path) -> None:
    result = reelserve("submit", "a red ball", "--json")

    printed = json.loads(result.stdout)
    assert printed["status"] == "completed"
    assert printed["file"] == str(tmp_path / f"{VIDEO_ID}.mp4")
    assert Path(printed["file"]).read_bytes() == CLIP


def test_submit_without_waiting_prints_the_id(finished: Script, tmp_path: Path) -> None:
    result = reelserve("submit", "a red ball", "--no-wait")

    assert (result.exit_code, result.stdout) == (0, f"{VIDEO_ID}\n")
    assert not finished.requests[f"GET /v1/videos/{VIDEO_ID}"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failed_job_is_exit_code_1_with_its_error(finished: Script, as_json: bool) -> None:
    finished.on(f"GET /v1/videos/{VIDEO_ID}", Answer(failed()))

    result = reelserve("submit", "a red ball", *["--json"] * as_json)

    assert result.exit_code == 1
    if as_json:
        assert json.loads(result.stdout)["error"]["code"] == "model_failed"
    else:
        assert result.stdout == ""
        assert "The model raised while it made this clip. (model_failed)" in result.stderr


def test_trouble_while_polling_is_borne(finished: Script, tmp_path: Path) -> None:
    finished.on(
        f"GET /v1/videos/{VIDEO_ID}",
        error(503, "service_unavailable", "The job store does not answer.", retry_after="0"),
        Answer(cut=0),
        Answer(denoising(3)),
        error(429, "slow_down", "Slow down.", retry_after="1"),
        Answer(b"<html>", status=502),
        Answer(completed()),
    )

    result = reelserve("submit", "a red ball", "--out", "ball.mp4")

    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "ball.mp4").read_bytes() == CLIP
    assert result.stderr.count("trying again") == 2  # once per outage, not per attempt


def test_trouble_that_lasts_ends_with_how_to_go_on(
    finished: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.5)
    finished.on(f"GET /v1/videos/{VIDEO_ID}", error(503, "service_unavailable", "Away."))

    result = reelserve("submit", "a red ball", "--json")

    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert printed["error"]["code"] == "service_unavailable"
    assert printed["video"]["id"] == VIDEO_ID
    assert f"reelserve jobs download {VIDEO_ID} --wait" in result.stderr


def test_a_lost_answer_is_asked_for_again_under_the_same_key(finished: Script) -> None:
    finished.on("POST /v1/videos", Answer(cut=0), Answer(queued()))

    result = reelserve("submit", "a red ball", "--no-wait")

    assert (result.exit_code, result.stdout) == (0, f"{VIDEO_ID}\n"), result.stderr
    first, second = finished.idempotency_keys
    assert first == second
    assert "trying again" in result.stderr


def test_each_submission_has_a_key_of_its_own_or_the_one_it_is_given(finished: Script) -> None:
    for arguments in ((), (), ("--idempotency-key", "order-7/1")):
        assert reelserve("submit", "a red ball", "--no-wait", *arguments).exit_code == 0

    one, other, given = finished.idempotency_keys
    assert one != other
    assert given == "order-7/1"


@pytest.mark.parametrize("key", ["", "two words", "naïve", "k" * 256, "line\nbreak"])
def test_a_key_that_no_header_can_carry_is_a_usage_error(finished: Script, key: str) -> None:
    result = reelserve("submit", "a red ball", "--idempotency-key", key)

    assert (result.exit_code, finished.requests) == (2, {})


def test_an_answer_that_never_comes_ends_with_the_key_to_try_again_with(
    finished: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.0)
    finished.on("POST /v1/videos", Answer(cut=0))

    result = reelserve("submit", "a red ball", "--idempotency-key", "order-7/1")

    assert result.exit_code == 1
    assert len(finished.requests["POST /v1/videos"]) == 1
    assert "--idempotency-key order-7/1" in result.stderr


def test_a_submission_that_reaches_nobody_is_not_repeated(
    api: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REELSERVE_URL", "http://127.0.0.1:9")

    result = reelserve("submit", "a red ball")

    assert result.exit_code == 1
    assert result.stderr == (
        "reelserve: cannot reach Reelserve at http://127.0.0.1:9; is `reelserve up` running?\n"
    )


def test_a_full_queue_is_waited_for(finished: Script) -> None:
    full = error(429, "queue_full", "The queue is full.", retry_after="1")
    finished.on("POST /v1/videos", full, Answer(queued()))

    result = reelserve("submit", "a red ball", "--no-wait", "--service-tier", "flex")

    assert result.exit_code == 0, result.stderr
    assert [sent["service_tier"] for sent in finished.requests["POST /v1/videos"]] == ["flex"] * 2


@pytest.mark.parametrize(
    "headers", [{"retry_after": "20", "x_should_retry": "false"}, {"retry_after": "3600"}]
)
def test_a_quota_that_is_used_up_is_told_at_once(finished: Script, headers: dict[str, str]) -> None:
    used_up = error(429, "insufficient_quota", "All 30 are used.", **headers)
    finished.on("POST /v1/videos", used_up, Answer(queued()))

    result = reelserve("submit", "a red ball")

    assert result.exit_code == 1
    assert len(finished.requests["POST /v1/videos"]) == 1
    assert "All 30 are used. (insufficient_quota" in result.stderr


def test_a_broken_download_starts_over_and_leaves_nothing_behind(
    finished: Script, tmp_path: Path
) -> None:
    (tmp_path / "ball.mp4").write_bytes(b"an older clip")
    content = f"GET /v1/videos/{VIDEO_ID}/content"
    finished.on(content, Answer(CLIP, cut=1000), Answer(CLIP))

    result = reelserve("submit", "a red ball", "--out", "ball.mp4")

    assert result.exit_code == 0, result.stderr
    assert len(finished.requests[content]) == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"ball.mp4": CLIP}


def test_a_download_that_fails_keeps_what_was_there(
    finished: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.3)
    (tmp_path / "ball.mp4").write_bytes(b"an older clip")
    finished.on(f"GET /v1/videos/{VIDEO_ID}/content", Answer(CLIP, cut=1000))

    result = reelserve("submit", "a red ball", "--out", "ball.mp4")

    assert result.exit_code == 1
    assert f"reelserve jobs download {VIDEO_ID}" in result.stderr
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an older clip"]


@pytest.mark.parametrize("out", ["missing/ball.mp4", "/dev/null"])
def test_a_place_that_cannot_be_written_is_refused_before_submitting(
    finished: Script, out: str
) -> None:
    result = reelserve("submit", "a red ball", "--out", out)

    assert result.exit_code == 2
    assert not finished.requests["POST /v1/videos"]


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_leaves_the_job_running_and_says_how_to_go_on(
    finished: Script, as_json: bool
) -> None:
    finished.on(f"GET /v1/videos/{VIDEO_ID}", Answer(denoising(3)))
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli.main", "submit", "a ball", *["--json"] * as_json],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs deaf to SIGINT, and the deafness is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert process.stderr is not None
    while "denoise 3/20" not in process.stderr.readline():
        assert process.poll() is None

    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=INTERRUPT_S)

    assert process.returncode == 130
    for command in ("download", "show", "cancel"):
        assert f"reelserve jobs {command} {VIDEO_ID}" in stderr
    assert "Traceback" not in stderr
    assert not finished.requests[f"POST /v1/videos/{VIDEO_ID}/cancel"]
    if as_json:
        printed = json.loads(stdout)
        assert printed["error"]["code"] == "interrupted"
        assert printed["video"]["status"] == "in_progress"
    else:
        assert stdout == ""


def test_download_says_how_far_a_job_is_and_waits_when_asked(
    finished: Script, tmp_path: Path
) -> None:
    ask = f"GET /v1/videos/{VIDEO_ID}"
    finished.on(ask, Answer(denoising(5)), Answer(denoising(6)), Answer(completed()))

    at_once = reelserve("jobs", "download", VIDEO_ID)
    waited = reelserve("jobs", "download", VIDEO_ID, "--wait", "--out", str(tmp_path))

    assert at_once.exit_code == 1
    assert "Not ready: denoise 5/20, about 3 s left." in at_once.stderr
    assert waited.exit_code == 0, waited.stderr
    assert (tmp_path / f"{VIDEO_ID}.mp4").read_bytes() == CLIP


def test_each_variant_has_its_own_file(finished: Script, tmp_path: Path) -> None:
    finished.on(f"GET /v1/videos/{VIDEO_ID}", Answer(completed()))

    for variant in ("thumbnail", "spritesheet"):
        assert reelserve("jobs", "download", VIDEO_ID, "--variant", variant).exit_code == 0

    names = {f"{VIDEO_ID}-thumbnail.jpg", f"{VIDEO_ID}-spritesheet.jpg"}
    assert {file.name for file in tmp_path.iterdir()} == names
    asked = finished.requests[f"GET /v1/videos/{VIDEO_ID}/content"]
    assert [path.partition("?")[2] for path in asked] == [
        "variant=thumbnail",
        "variant=spritesheet",
    ]


def test_a_preview_is_for_a_job_that_still_runs(finished: Script, tmp_path: Path) -> None:
    finished.on(f"GET /v1/videos/{VIDEO_ID}", Answer(denoising(5)))
    finished.on(f"GET /v1/videos/{VIDEO_ID}/content", Answer(b"a preview"))
    command = ("jobs", "download", VIDEO_ID, "--variant", "preview")

    got, waiting = reelserve(*command), reelserve(*command, "--wait")

    assert got.exit_code == 0, got.stderr
    assert (tmp_path / f"{VIDEO_ID}-preview.jpg").read_bytes() == b"a preview"
    assert waiting.exit_code == 2
    assert "leave --wait out" in waiting.stderr
    finished.on(
        f"GET /v1/videos/{VIDEO_ID}/content", error(400, "video_not_ready", "No preview yet.")
    )
    early = reelserve(*command, "--out", str(tmp_path / "early.jpg"))
    assert (early.exit_code, "No preview yet." in early.stderr) == (1, True)
    assert not (tmp_path / "early.jpg").exists()


def test_a_list_in_a_pipe_has_whole_ids_and_safe_prompts(api: Script) -> None:
    hostile = "\x1b[31mred\x1b[0m\n[bold]ball[/bold] " + "x" * 100
    page = {
        "object": "list",
        "data": [{**denoising(3), "prompt": hostile}],
        "first_id": VIDEO_ID,
        "last_id": VIDEO_ID,
        "has_more": True,
    }
    api.on("GET /v1/videos", Answer(page))

    people, machines = reelserve("jobs", "list"), reelserve("jobs", "list", "--json")

    assert VIDEO_ID in people.stdout
    assert "\x1b" not in people.stdout
    assert "[bold]ball[/bold]" in people.stdout
    assert f"--after {VIDEO_ID}" in people.stderr
    assert json.loads(machines.stdout) == page


def test_an_api_error_is_told_with_its_code_and_request(api: Script) -> None:
    api.on(f"GET /v1/videos/{VIDEO_ID}", error(404, "video_not_found", "There is no video."))

    people, machines = (
        reelserve("jobs", "show", VIDEO_ID),
        reelserve("jobs", "show", VIDEO_ID, "--json"),
    )

    assert (people.exit_code, people.stdout) == (1, "")
    assert people.stderr == "reelserve: There is no video. (video_not_found, request req_1)\n"
    assert machines.exit_code == 1
    assert json.loads(machines.stdout)["error"]["code"] == "video_not_found"


@pytest.mark.parametrize("as_json", [False, True])
def test_nobody_listening_is_one_line(
    api: Script, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setenv("REELSERVE_URL", "http://127.0.0.1:9")  # the discard port

    result = reelserve("status", *["--json"] * as_json)

    told = "cannot reach Reelserve at http://127.0.0.1:9; is `reelserve up` running?"
    assert result.exit_code == 1
    if as_json:
        assert json.loads(result.stdout)["error"]["message"] == told
    else:
        assert result.stderr == f"reelserve: {told}\n"


@pytest.mark.parametrize(
    ("variable", "command"),
    [("REELSERVE_API_KEY", ["jobs", "list"]), ("REELSERVE_ADMIN_KEY", ["keys", "list"])],
)
def test_a_missing_key_names_its_variable(
    api: Script, monkeypatch: pytest.MonkeyPatch, variable: str, command: list[str]
) -> None:
    monkeypatch.delenv(variable)

    result = reelserve(*command)

    assert result.exit_code == 1
    assert f"{variable} is not set" in result.stderr
    assert "reelserve up" in result.stderr


@pytest.mark.parametrize("key", ["naïve", "two words", "line\nbreak"])
def test_a_key_no_header_can_carry_is_refused_and_not_shown(
    api: Script, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("REELSERVE_API_KEY", key)

    result = reelserve("jobs", "list")

    assert result.exit_code == 1
    assert "REELSERVE_API_KEY" in result.stderr
    assert key not in result.output


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://me:secret@host", "http://x:eight"]
)
def test_a_url_that_is_none_is_refused_and_not_shown(
    api: Script, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REELSERVE_URL", url)

    result = reelserve("jobs", "list")

    assert result.exit_code == 1
    assert "REELSERVE_URL must look like" in result.stderr
    assert "secret" not in result.output


def test_the_base_url_of_an_sdk_works(api: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELSERVE_URL", f"{api.url}/v1/")
    api.on("GET /v1/models", Answer({"object": "list", "data": []}))

    assert reelserve("models", "list").exit_code == 0


def test_a_new_key_stands_alone_on_stdout(api: Script) -> None:
    api.on("POST /v1/admin/keys", Answer(made_key()))

    people, machines = (
        reelserve("keys", "create", "--user", "ann"),
        reelserve("keys", "create", "--user", "ann", "--json"),
    )

    assert people.stdout == f"{KEY}\n"
    assert KEY not in people.stderr
    assert "speaks for ann and may generate, read" in people.stderr
    assert json.loads(machines.stdout) == made_key()
    assert api.requests["POST /v1/admin/keys"] == [{"user": "ann"}] * 2


def test_a_key_is_made_with_what_was_asked(api: Script) -> None:
    api.on("POST /v1/admin/keys", Answer(made_key(scopes=["read", "act-as"])))

    asked = ("--user", "ann", "--scope", "read", "--scope", "act-as", "--tier", "pro")
    result = reelserve("keys", "create", *asked)

    assert result.exit_code == 0, result.stderr
    sent = {"user": "ann", "scopes": ["read", "act-as"], "tier": "pro"}
    assert api.requests["POST /v1/admin/keys"] == [sent]
    assert "may read, act-as" in result.stderr


def test_keys_are_listed_with_what_they_may_do(api: Script) -> None:
    rotated = made_key(scopes=["admin"], previous_works_until=1_790_000_000)
    api.on("GET /v1/admin/keys", Answer({"object": "list", "data": [made_key(), rotated]}))

    people, machines = reelserve("keys", "list"), reelserve("keys", "list", "--json")

    _, _, first, second = people.stdout.splitlines()
    assert "generate, read" in first
    assert "admin" in second
    assert str(when(1_790_000_000)) in second
    assert json.loads(machines.stdout)["data"][1] == rotated


@pytest.mark.parametrize(
    ("grace", "grace_s"),
    [([], 86400), (["--grace", "90"], 90), (["--grace", "7d"], 604800), (["--grace", "0"], 0)],
)
def test_a_rotated_key_stands_alone_on_stdout(api: Script, grace: list[str], grace_s: int) -> None:
    route = "POST /v1/admin/keys/0123456789ab/rotate"
    api.on(route, Answer(made_key(previous_works_until=1_790_000_000)))

    result = reelserve("keys", "rotate", KEY, *grace)

    assert (result.exit_code, result.stdout) == (0, f"{KEY}\n"), result.stderr
    assert api.requests[route] == [{"grace_s": grace_s}]
    until = f"works until {when(1_790_000_000)}" if grace_s else "has ended"
    assert f"The secret before {until}" in result.stderr


@pytest.mark.parametrize("grace", ["", "soon", "-1", "1w", "1.5h"])
def test_a_grace_that_is_no_time_is_a_usage_error(api: Script, grace: str) -> None:
    result = reelserve("keys", "rotate", "0123456789ab", "--grace", grace)
    assert (result.exit_code, "24h" in result.stderr) == (2, True)
    assert not api.requests


def test_revoking_by_the_key_sends_only_its_id(api: Script) -> None:
    api.on("DELETE /v1/admin/keys/0123456789ab", Answer({"deleted": True}))

    result = reelserve("keys", "revoke", KEY)

    assert result.exit_code == 0, result.stderr
    assert result.output == "0123456789ab revoked\n"


def user(name: str, tier: str | None) -> dict[str, Any]:
    return {"object": "user", "id": name, "tier": tier, "created_at": 1_790_000_000}


def test_users_are_listed_with_their_tiers(api: Script) -> None:
    page = {
        "object": "list",
        "data": [user("shop", "pro"), user("shop/ann", None)],
        "first_id": "shop",
        "last_id": "shop/ann",
        "has_more": True,
    }
    api.on("GET /v1/admin/users", Answer(page))

    people = reelserve("users", "list", "--limit", "2", "--after", "ann")
    machines = reelserve("users", "list", "--json")

    _, _, first, second = people.stdout.splitlines()
    assert (first.split()[:2], "the default one" in second) == (["shop", "pro"], True)
    assert "reelserve users list --limit 2 --after shop/ann" in people.stderr
    assert "limit=2&after=ann" in api.requests["GET /v1/admin/users"][0]
    assert json.loads(machines.stdout) == page


def test_an_end_user_is_shown_and_given_a_tier(api: Script) -> None:
    route = "/v1/admin/users/shop/ann"
    api.on(f"GET {route}", Answer(user("shop/ann", None)))
    api.on(f"PUT {route}", Answer(user("shop/ann", "pro")), Answer(user("shop/ann", None)))

    shown = reelserve("users", "show", "shop/ann")
    given = reelserve("users", "set", "shop/ann", "--tier", "pro")
    taken = reelserve("users", "set", "shop/ann", "--default-tier", "--json")

    assert "the default one" in shown.stdout
    assert (given.exit_code, "pro" in given.stdout) == (0, True), given.stderr
    assert json.loads(taken.stdout)["tier"] is None
    assert api.requests[f"PUT {route}"] == [{"tier": "pro"}, {"tier": None}]


@pytest.mark.parametrize(
    "arguments",
    [["ann"], ["ann", "--tier", "pro", "--default-tier"], ["ann/", "--tier", "pro"]],
    ids=["no tier", "two tiers", "no name"],
)
def test_setting_what_is_no_tier_or_no_user_is_a_usage_error(
    api: Script, arguments: list[str]
) -> None:
    assert reelserve("users", "set", *arguments).exit_code == 2
    assert not api.requests


def test_status_shows_each_pool(api: Script) -> None:
    replica = {"id": "abc", "host": "gpu1", "pid": 7, "slots": 4, "free": 3, "age_s": 61.0}
    replica |= {"state": "busy"}
    pool = {
        "queued": 3,
        "in_progress": 1,
        "oldest_wait_s": 4.5,
        "ended": {"completed": 12},
        "counts": {"resumed": 2},
        "replicas": [replica],
        "failed_starts": {"count": 2, "error": "ConfigError"},
        "costs": {"NVIDIA H200": {"step": {"predictions": 99, "error": 0.034, "bias": -0.01}}},
    }
    api.on("GET /readyz", Answer({"status": "ready"}))
    api.on("GET /v1/status", Answer({"object": "status", "pools": {"demo-wan": pool}}))

    people, machines = reelserve("status"), reelserve("status", "--json")

    assert "demo-wan" in people.stdout
    assert "4.5 s" in people.stdout
    assert "gpu1, pid 7" in people.stdout
    assert "busy" in people.stdout
    assert "demo-wan: the last 2 replicas failed to start (ConfigError)" in people.stdout
    assert "resumed 2" in people.stdout
    assert "demo-wan on NVIDIA H200: estimates off by step 3%" in people.stdout
    assert json.loads(machines.stdout)["ready"] is True
    assert json.loads(machines.stdout)["pools"]["demo-wan"] == pool


def test_tiers_in_force_are_shown_beside_what_is_wrong_with_the_file(api: Script) -> None:
    tier = {
        "generations_per_day": 30,
        "gpu_seconds_per_day": 3600.0,
        "models": ["demo-wan", "sora-2"],
        "class": "standard",
        "surge": None,
    }
    answer = {
        "object": "tiers",
        "file": "/etc/reelserve/tiers.yaml",
        "changed_at": 1_790_000_000,
        "error": "/etc/reelserve/tiers.yaml line 3, tiers.free.weight: should be …",
        "tiers": {"free": tier, "pro": {**tier, "surge": {"generations_per_day": 5}}},
        "default_tier": "free",
        "time_zone": "UTC",
    }
    api.on("GET /v1/admin/tiers", Answer(answer))

    people, machines = reelserve("tiers", "show"), reelserve("tiers", "show", "--json")

    rows = {row.split()[0]: row.split()[1:] for row in people.stdout.splitlines() if row.strip()}
    assert people.exit_code == 0
    assert rows["free*"] == ["pro"]
    assert rows["gpu_seconds_per_day"] == ["3600", "3600"]
    assert rows["models"] == ["demo-wan,", "sora-2"] * 2
    assert rows["surge.generations_per_day"] == ["-", "5"]
    assert "From /etc/reelserve/tiers.yaml, in force since 20" in people.stdout
    assert "is not in force: /etc/reelserve/tiers.yaml line 3" in people.stderr
    assert json.loads(machines.stdout) == answer


@pytest.mark.parametrize("video_id", ["", "..", "../admin/keys", "a b"])
def test_what_cannot_be_an_id_is_a_usage_error(api: Script, video_id: str) -> None:
    assert reelserve("jobs", "delete", video_id).exit_code == 2
    assert not api.requests


def test_installing_the_demo_never_deletes_a_folder_in_use(api: Script, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    result = reelserve("models", "install-demo", "--dir", str(tmp_path))

    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert (tmp_path / "thesis.txt").exists()


def test_help_needs_no_heavy_library() -> None:
    imports = (
        "import sys, deployments.cli.main;"
        "print(*sys.modules.keys() & {'ray', 'torch', 'diffusers', 'transformers', 'fastapi'})"
    )

    result = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True)

    assert (result.stdout.strip(), result.returncode) == ("", 0), result.stderr


def test_checkpoints_that_come_with_reelserve_are_put_where_replicas_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REELSERVE_MODELS_DIR", str(tmp_path))
    for _ in range(2):
        done = CliRunner().invoke(app, ["models", "fetch", "--json"])
        assert json.loads(done.stdout) == {"demo-wan": str(tmp_path / "demo-wan")}
    assert (tmp_path / "demo-wan" / "model_index.json").is_file()


def test_a_checkpoint_that_nobody_can_bring_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "own.yaml").write_text(
        'changes: demo-wan\nid: own\naliases: []\nweights: {path: "/nowhere"}\n'
    )
    monkeypatch.setenv("REELSERVE_MODELS", '["own"]')
    monkeypatch.setenv("REELSERVE_CATALOG_DIRS", json.dumps([str(folder)]))
    done = CliRunner().invoke(app, ["models", "fetch"])
    assert done.exit_code == 1
    assert "no checkpoint in /nowhere" in done.stderr
