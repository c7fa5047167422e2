"""The load generator's arithmetic, and its loops against servers that behave badly on purpose."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from loadtest.connection import Address, Connection
from loadtest.open_loop import Generator, Plan, due_times_s
from loadtest.summary import percentile, ratios, spread_ms

STALL_S = 0.4

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([3.0, 1.0, 2.0, 4.0], 50, 2.0),
        ([3.0, 1.0, 2.0, 4.0], 75, 3.0),
        ([3.0, 1.0, 2.0, 4.0], 99, 4.0),
        ([3.0, 1.0, 2.0, 4.0], 0, 1.0),
        (list(map(float, range(1, 1001))), 99, 990.0),
    ],
)
def test_percentiles_are_values_that_were_measured(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_row_is_compared_with_the_baseline_by_name() -> None:
    row, base = spread_ms([2.0, 4.0, 9.0]), spread_ms([2.0, 2.0, 3.0])
    assert ratios({**row, "own": 1.0}, base) == {
        "p50_ms": 2.0,
        "p95_ms": 3.0,
        "p99_ms": 3.0,
        "max_ms": 3.0,
    }


def test_requests_are_due_evenly_and_not_without_end() -> None:
    assert due_times_s(4, 1.5) == [0, 0.25, 0.5, 0.75, 1.0, 1.25]
    for rate, seconds in [(0.1, 1), (5000, 1e6)]:
        with pytest.raises(ValueError, match="requests"):
            due_times_s(rate, seconds)


def test_a_request_carries_what_http_wants() -> None:
    raw = Address("h", 1).request("POST", "/p", "k", {"a": "é"})
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /p HTTP/1.1"
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body) == {"a": "é"}


@pytest.mark.parametrize("url", ["https://h:1", "http://h", "h:1"])
def test_only_plain_http_can_be_measured(url: str) -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Address.of(url)


def test_a_stall_is_charged_for_everybody_it_kept_waiting() -> None:
    """A client that waits for one answer before it asks again would report one slow request."""

    async def run() -> None:
        stalled = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await _request(reader):
                await stalled.wait()
                writer.write(_answer("{}"))

        async with _server(serve) as url:
            generator = Generator(Plan(url, "k", "GET", "/", 1))
            loop = asyncio.get_running_loop()
            # Given a server that answers nobody until the last request was long due
            due_s = due_times_s(50, STALL_S / 2)
            loop.call_later(STALL_S, stalled.set)
            # When requests are sent meanwhile
            samples = await generator.open_loop(due_s)
        # Then each of them waited from its own time until then, and all left on time
        assert len(samples) == len(due_s)
        assert all(sample.ok for sample in samples)
        for due, sample in zip(due_s, samples, strict=True):
            assert sample.latency_ms >= 1000 * (STALL_S - due) - 100
        assert max(sample.sent_ms for sample in samples) < 1000 * STALL_S / 2

    asyncio.run(run())


def test_connections_are_kept_and_replaced_when_the_server_closes_them() -> None:
    async def run() -> None:
        made = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal made
            made += 1
            for more in ("keep-alive", "keep-alive", "close"):
                if await _request(reader):
                    writer.write(_answer("{}", f"200 OK\r\nConnection: {more}"))
            writer.close()

        async with _server(serve) as url:
            generator = Generator(Plan(url, "k", "GET", "/", 1))
            samples = [await generator.send(0.0) for _ in range(9)]
        assert all(sample.ok for sample in samples), samples
        assert made == 3

    asyncio.run(run())


def test_errors_are_counted_and_not_repeated() -> None:
    async def run() -> None:
        asked = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            while await _request(reader):
                asked += 1
                if asked == 2:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                    writer.close()
                    return
                writer.write(_answer('{"error": 1}', "503 Away"))

        async with _server(serve) as url:
            generator = Generator(Plan(url, "k", "GET", "/", 1))
            samples = [await generator.send(0.0) for _ in range(3)]
        assert [sample.ok for sample in samples] == [False, False, False]
        assert "503" in samples[0].error
        assert "IncompleteReadError" in samples[1].error
        assert asked == 3

    asyncio.run(run())


def test_an_answer_without_a_length_is_an_error() -> None:
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")

        async with _server(serve) as url:
            connection = await Connection.to(Address.of(url))
            with pytest.raises(ValueError, match="content-length"):
                await connection.send(b"GET / HTTP/1.1\r\n\r\n")
            assert not connection.usable
            connection.close()

    asyncio.run(run())


CLIP = b"\0\0\0\x18ftypisom" + bytes(500)


class Api:
    """A server with the API's shape. ``states`` is what polls of each job are told in turn."""

    def __init__(self) -> None:
        self.states = ["in_progress", "completed"]
        self.submit_status = 200
        self.clip = CLIP
        self.polls: dict[str, int] = defaultdict(int)
        self.jobs = 0
        self.url = ""

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/v1/models":
            return _json({"data": [{"id": "m", "seconds": [4, 1]}]})
        if path.startswith("/v1/videos?"):
            return _json({"data": []})
        if method == "POST":
            if self.submit_status != 200:
                return self.submit_status, {"retry-after": "0.2"}, b"{}"
            self.jobs += 1
            return _json({"id": f"v{self.jobs}", "status": "queued"})
        if path.endswith("/content"):
            return 200, {}, self.clip
        video_id = path.rpartition("/")[2]
        times = self.polls[video_id]
        self.polls[video_id] += 1
        state = self.states[min(times, len(self.states) - 1)]
        body = {"id": video_id, "status": state, "error": None, "size_bytes": len(CLIP)}
        # Only the first answer may set the interval: the others would stop the whole test.
        return _json(body, {"openai-poll-after-ms": "600000" if times else "20"})


@pytest.fixture
def api() -> Iterator[Api]:
    with _http(Api()) as running:
        yield running


def test_users_make_clips(api: Api) -> None:
    api.states = ["queued", "in_progress", "in_progress", "completed"]
    result = _steady(api)
    assert result["ok"], result
    assert result["errors"] == []
    jobs = result["jobs"]
    assert jobs["completed"] == jobs["submitted"] == api.jobs > 0
    assert set(api.polls.values()) == {4}  # the interval was that of the first answer
    names = {entry["name"] for entry in result["entries"]}
    assert {"/v1/videos", "/v1/videos/ID", "/v1/videos/ID/content", "submission to clip"} <= names
    assert not any("v1/videos/v" in name for name in names)


def test_a_failed_job_is_a_failure(api: Api) -> None:
    api.states = ["failed"]
    result = _steady(api)
    assert not result["ok"]
    assert result["failures"] == 0  # every request was answered well
    assert result["jobs"]["failed"] == result["jobs"]["submitted"] > 0
    assert "failed" in result["errors"][0]["error"]


def test_half_a_clip_is_a_failure(api: Api) -> None:
    api.clip = CLIP[:-1]
    result = _steady(api)
    assert not result["ok"]
    assert result["jobs"]["failed"] > 0


def test_a_full_queue_counts_apart(api: Api) -> None:
    api.submit_status = 429
    result = _steady(api)
    assert result["ok"], result
    assert result["refused"] > 0
    assert result["failures"] == result["jobs"]["submitted"] == 0


def test_an_error_of_the_server_is_a_failure(api: Api) -> None:
    api.submit_status = 500
    result = _steady(api)
    assert not result["ok"]
    assert result["failures"] > 0
    assert result["errors"][0]["name"] == "POST /v1/videos"


def _steady(api: Api) -> dict[str, Any]:
    from loadtest.steady import run

    env = {**os.environ, "REELSERVE_URL": f"{api.url}/v1", "REELSERVE_API_KEY": "k"}
    return run(4, 2, env, lambda _: None)


def test_locust_stays_out_of_the_command_line() -> None:
    """It replaces the standard library's sockets, which the command line's Ray could not bear."""
    imports = (
        "import sys, deployments.cli.main, loadtest.steady, loadtest.submit, loadtest.overhead;"
        "print(*sys.modules.keys() & {'locust', 'gevent', 'ray', 'torch'})"
    )
    done = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def _json(body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return 200, headers or {}, json.dumps(body).encode()


@contextmanager
def _http(api: Api) -> Iterator[Api]:
    class Handle(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            status, headers, body = api.answer(self.command, self.path)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _any

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handle)
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@asynccontextmanager
async def _server(serve: Handler) -> AsyncIterator[str]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


async def _request(reader: asyncio.StreamReader) -> bool:
    """Read one request without a body; False at the end of the connection."""
    try:
        await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    return True


def _answer(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
