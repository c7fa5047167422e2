"""`reelserve bench admission` and `bench queue`: arithmetic, and tiny runs on a real Redis."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from deployments.cli.main import app
from deployments.redis_server import RedisServer
from loadtest.errors import LoadTestError
from loadtest.queue import admission, backlog
from loadtest.queue.admission import Turn, bench_admission, summarised
from loadtest.queue.backlog import bench_queue
from loadtest.queue.calls import POOL, Submission, Submit, specification
from loadtest.queue.wire import (
    SO_TIMESTAMPNS,
    Exchange,
    Incomplete,
    Pause,
    WireCell,
    arrived,
    command,
    drive,
    parse,
)
from loadtest.summary import judged
from serving.jobs import CELL, Cell, JobQueue, Limits, State

TINY = admission.Plan(rounds=2, requests={1: 20, 50: 120})
SHORT = backlog.Plan(
    jobs=600,
    tenants=30,
    fleet=32,
    fleet_replicas=1000,
    replicas=3,
    cycles=20,
    rewriting=5,
    settle_s=0,
    alone=5,
)


def quiet(text: str) -> None:
    """Progress that nobody reads."""


def turn(per_s: float, server_us: float = 10.0, client_share: float = 0.5) -> Turn:
    return Turn(per_s, 1.0, 2.0, server_us, client_share)


def test_a_reply_is_read_whole_or_not_at_all() -> None:
    reply = b"*4\r\n$8\r\naccepted\r\n:12\r\n$-1\r\n*2\r\n$4\r\na\r\nb\r\n+OK\r\n"
    assert parse(reply) == ["accepted", 12, None, ["a\r\nb", "OK"]]
    for end in range(len(reply)):
        with pytest.raises(Incomplete):
            parse(reply[:end])
    with pytest.raises(LoadTestError, match="more than was asked"):
        parse(reply + b"+OK\r\n")
    with pytest.raises(LoadTestError, match="OOM command not allowed"):
        parse(b"-OOM command not allowed\r\n")


def test_ratios_are_of_turns_side_by_side() -> None:
    """The machine got slower half way: a ratio of medians would be of different machines."""
    turns = {
        "set": {1: [turn(1000), turn(500), turn(400)], 50: [turn(9000, 5.0, 0.95)]},
        "admission": {1: [turn(600), turn(250), turn(300)], 50: [turn(1800, 50.0)]},
    }
    found = summarised(turns)
    assert found["admission_vs_set"] == {1: 0.6, 50: 0.2}
    assert found["admission_vs_set_spread"][1] == [0.5, 0.75]
    assert found["per_s_50"] == 1800
    assert found["server_cpu_ratio"][50] == 0.1
    assert found["client_bound"] == ["set at 50"]
    met = {name: each["met"] for name, each in found["targets"].items()}
    assert met == {"admission_vs_set at 1": True, "admission_vs_set at 50": True, "per_s_50": False}


def test_targets_are_met_from_above_or_from_below() -> None:
    found = judged({"rate": 5.0, "delay": 5.0}, at_least={"rate": 5}, at_most={"delay": 4.9})
    assert found["rate"] == {"target": 5, "found": 5.0, "met": True}
    assert not found["delay"]["met"]


def test_a_request_is_productions_own_with_the_gaps_filled() -> None:
    cell = WireCell(CELL)
    spec, new = specification(), Submission("video_1", "ann", 7000, "ab" * 32, "my-key")
    words = parse(Submit(cell, Limits(), spec, keyed=True).encoded(new))
    assert words[0] == "EVALSHA"
    for value in ("video_1", "ann", "7000", "ab" * 32, "my-key"):
        assert words.count(value) == 1
    assert not [word for word in words if word.startswith("<")]
    unkeyed = parse(Submit(cell, Limits(), spec, keyed=False).encoded(new))
    assert "my-key" not in unkeyed


def test_a_command_counts_bytes_not_letters() -> None:
    assert command("SET", "ö", 1) == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xb6\r\n$1\r\n1\r\n"


@pytest.mark.parametrize("by_arrival", [True, False])
def test_what_the_client_computes_for_one_connection_is_no_wait_of_another(
    by_arrival: bool,
) -> None:
    """The second answer arrives while the client is busy with the first."""
    both_answered, busy = threading.Event(), threading.Event()
    done_s: list[float] = []

    async def first() -> None:
        await Exchange(b"ask")
        busy.set()
        assert both_answered.wait(60)
        done_s.append(time.time())

    async def second() -> None:
        sent_s = time.time()
        _, took_s = await Exchange(b"ask")
        done_s.append(sent_s + took_s)

    def serve(ours: list[socket.socket]) -> None:
        for each in ours:
            each.recv(3)
        ours[0].sendall(b"+OK\r\n")
        assert busy.wait(60)
        ours[1].sendall(b"+OK\r\n")
        time.sleep(0.01)
        both_answered.set()

    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        theirs, ours = [], []
        for _ in range(2):
            theirs.append(stack.enter_context(socket.create_connection(listening.getsockname())))
            ours.append(stack.enter_context(listening.accept()[0]))
        # The kernel takes a moment to begin.
        theirs[0].setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        unread = 0.0
        while unread < 0.005:
            ours[0].sendall(b"+OK\r\n")
            time.sleep(0.01)
            _, arrived_s, read_s = arrived(theirs[0])
            unread = read_s - arrived_s
        server = threading.Thread(target=serve, args=(ours,))
        server.start()
        unread_s: list[float] = []
        drive(theirs, [first(), second()], unread_s if by_arrival else None)
        server.join()
    busy_until_s, answered_s = done_s
    assert (answered_s < busy_until_s) is by_arrival
    assert len(unread_s) == (2 if by_arrival else 0)


def test_who_pauses_keeps_nobody_waiting() -> None:
    order: list[str] = []

    async def pauses() -> None:
        await Pause(0.05)
        order.append("paused")
        await Exchange(b"ask")

    async def asks() -> None:
        for _ in range(3):
            await Exchange(b"ask")
            order.append("asked")

    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(2)]
        for pair in pairs:
            for end in pair:
                stack.enter_context(end)
        (first, its_server), (second, other_server) = pairs

        def serve() -> None:
            for server, count in ((other_server, 3), (its_server, 1)):
                for _ in range(count):
                    assert server.recv(3) == b"ask"
                    server.sendall(b"+OK\r\n")

        server = threading.Thread(target=serve)
        server.start()
        took_s = drive([first, second], [pauses(), asks()])
        server.join()
    assert order == ["asked"] * 3 + ["paused"]
    assert took_s >= 0.05


@pytest.mark.asyncio
async def test_every_submission_of_a_run_waits_in_the_queue(
    redis_server: RedisServer, redis: Redis
) -> None:
    found = bench_admission(redis_server.url, TINY, quiet)
    assert set(found["targets"]) == set(admission.TARGETS)
    assert found["set"][1]["per_s"] > 0
    state = (await JobQueue(Cell(redis)).pools([POOL]))[POOL]
    assert state.queued == (1 + TINY.rounds) * sum(TINY.requests.values())
    assert await redis.keys(f"{CELL}:used:*"), "each was taken from an allowance"


@pytest.mark.asyncio
async def test_a_redis_that_refuses_ends_the_run(redis_server: RedisServer, redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(LoadTestError, match="OOM"):
            bench_admission(redis_server.url, TINY, quiet)
    finally:
        await redis.config_set("maxmemory", "0")


@pytest.mark.asyncio
async def test_as_many_jobs_wait_after_the_leases_as_before(
    redis_server: RedisServer, redis: Redis
) -> None:
    told: list[str] = []
    found = bench_queue(redis_server.url, SHORT, told.append)
    assert found["jobs"] == SHORT.jobs
    assert any("600 of 600 jobs wait" in text for text in told)
    assert 0 < found["bytes_per_job"] < 10_000
    paced = {name: each["calls"] for name, each in found["fleet"].items()}
    assert paced["finish"] == paced["submit"] == SHORT.fleet
    assert found["fleet_evalsha"]["calls"] == sum(paced.values())
    # It cannot be faster than its pace.
    assert found["fleet_evalsha"]["per_s"] < 1.3 * 11 * SHORT.fleet_replicas / SHORT.job_s
    assert found["lease_p99_ms"] == found["together"]["lease"]["p99_ms"]
    assert found["fleet_lease_p99_ms"] == found["fleet"]["lease"]["p99_ms"]
    calls = {name: each["calls"] for name, each in found["together"].items()}
    assert calls["finish"] == calls["submit"] == SHORT.replicas * SHORT.cycles
    assert calls["lease"] >= calls["finish"]
    # Redis counts the same calls.
    assert found["evalsha"]["calls"] == sum(calls.values())
    assert found["unread"]["calls"] >= sum(calls.values())
    for each in found["alone"].values():
        assert 0 < each["redis_share"] < 1
    state = (await JobQueue(Cell(redis)).pools([POOL]))[POOL]
    assert (state.queued, state.in_progress) == (SHORT.jobs, 0)
    beside = {name: each["calls"] for name, each in found["rewriting"].items()}
    assert beside["finish"] == beside["submit"] == SHORT.replicas * SHORT.rewriting
    assert found["rewriting_lease_p99_ms"] == found["rewriting"]["lease"]["p99_ms"]
    ended = calls["finish"] + beside["finish"] + SHORT.fleet + SHORT.alone
    assert state.ended[State.COMPLETED] == ended


def test_the_command_prints_one_json_value() -> None:
    args = ["bench", "queue", "--quick", "--jobs", "1000", "--tenants", "20", "--json"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert (value["jobs"], value["tenants"]) == (1000, 20)
    assert value["lease_p99_ms"] == value["targets"]["lease_p99_ms"]["found"]
    assert "appendfsync always" in value["redis"]
