"""`reelserve bench admission`: submissions against bare SETs, in turns on one Redis."""

from __future__ import annotations

import random
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.queue.calls import POOL, Submission, Submit, specification
from loadtest.queue.wire import WireCell, ask, command, connect, drive, info, send
from loadtest.summary import judged, percentile
from serving.jobs import CELL, Kind, Limits, new_id
from serving.plan.classes import ServiceClass

TARGETS = {"admission_vs_set at 1": 0.5, "admission_vs_set at 50": 0.2, "per_s_50": 10_000.0}
"""At least."""
USERS = 10_000
DAY_MS = 86_400_000
CLIENT_BOUND = 0.9
"""A client that computes for more of the time than this was what held the rate down."""


@dataclass(frozen=True)
class Plan:
    """``requests`` in one turn, by the number of connections; how many ``rounds`` of turns."""

    rounds: int
    requests: Mapping[int, int]

    @classmethod
    def full(cls) -> Plan:
        return cls(rounds=11, requests={1: 2000, 50: 15_000})

    @classmethod
    def quick(cls) -> Plan:
        return cls(rounds=3, requests={1: 1000, 50: 6000})


@dataclass(frozen=True)
class Turn:
    """What one kind of request did on so many connections."""

    per_s: float
    p50_ms: float
    p99_ms: float
    server_us: float
    """CPU of the server per request; waiting for the disk is not in it."""
    client_share: float
    """For how much of the time the client computed."""


def bench_admission(url: str, plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every figure, on an empty Redis. :class:`LoadTestError` when a request is refused.

    Every submission takes the whole waterfall: idempotency key, rate, bounds of the queue,
    allowance; by a user of its own among :data:`USERS`. A SET stores as many bytes as the job's
    specification has, under a key of its own.
    """
    turns: dict[str, dict[int, list[Turn]]] = {
        name: {count: [] for count in plan.requests} for name in ("set", "admission")
    }
    with closing(_Bench(url)) as bench:
        for number in range(1 + plan.rounds):
            for count, requests in plan.requests.items():
                # Whoever went second goes first in the next round.
                for name in ("set", "admission")[:: 1 if number % 2 else -1]:
                    turns[name][count].append(bench.turn(name, count, requests))
            last = {name: f"{by_count[50][-1].per_s:,.0f}" for name, by_count in turns.items()}
            tell(
                f"{f'round {number} of {plan.rounds}' if number else 'to warm up'}: on 50 "
                f"connections {last['admission']} submissions a second, {last['set']} SETs"
            )
    return summarised(
        {name: {n: found[1:] for n, found in each.items()} for name, each in turns.items()}
    )


def summarised(turns: Mapping[str, Mapping[int, Sequence[Turn]]]) -> dict[str, Any]:
    """The medians; a ratio is that of two turns one after the other."""
    ratios = {
        count: [
            ours.per_s / bare.per_s
            for ours, bare in zip(turns["admission"][count], turns["set"][count], strict=True)
        ]
        for count in turns["set"]
    }
    medians = {
        name: {count: _median(found) for count, found in by_count.items()}
        for name, by_count in turns.items()
    }
    value: dict[str, Any] = {
        "admission_vs_set": {
            count: round(statistics.median(found), 3) for count, found in ratios.items()
        },
        "per_s_50": medians["admission"][50]["per_s"],
        "admission_vs_set_spread": {
            count: [round(min(found), 3), round(max(found), 3)] for count, found in ratios.items()
        },
        # What the ratio would be if nothing but the server's CPU counted.
        "server_cpu_ratio": {
            count: round(
                medians["set"][count]["server_us"] / medians["admission"][count]["server_us"], 3
            )
            for count in ratios
        },
        **medians,
        "client_bound": [
            f"{name} at {count}"
            for name, by_count in medians.items()
            for count, found in by_count.items()
            if found["client_share"] > CLIENT_BOUND
        ],
    }
    found = {
        f"admission_vs_set at {count}": each for count, each in value["admission_vs_set"].items()
    }
    value["targets"] = judged({**found, "per_s_50": value["per_s_50"]}, at_least=TARGETS)
    return value


def _median(turns: Sequence[Turn]) -> dict[str, float]:
    return {
        name: round(statistics.median(getattr(turn, name) for turn in turns), 3)
        for name in ("per_s", "p50_ms", "p99_ms", "server_us", "client_share")
    }


class _Bench:
    """The connections, and the requests to come."""

    def __init__(self, url: str) -> None:
        self._cell = WireCell(CELL)
        self._control = connect(url)
        self._url = url
        self._connections: list[socket.socket] = []
        self._cell.load(self._control)
        spec = specification()
        self._submit = Submit(self._cell, _limits(ask(self._control, "TIME")), spec, keyed=True)
        self._value = spec.model_dump_json()
        self._draw = random.Random(0)  # noqa: S311
        self._users = self._numbers()

    def close(self) -> None:
        for each in (self._control, *self._connections):
            each.close()

    def turn(self, name: str, connections: int, requests: int) -> Turn:
        """So many requests of one kind."""
        while len(self._connections) < connections:
            self._connections.append(connect(self._url))
        encoded = [self._request(name) for _ in range(requests)]
        latencies_s: list[float] = []
        rest = iter(encoded)
        queued = self._queued()
        server_s, client_s = self._server_s(), time.process_time()
        used = self._connections[:connections]
        took_s = drive(used, [send(rest, latencies_s) for _ in used])
        client_s, server_s = time.process_time() - client_s, self._server_s() - server_s
        if name == "admission" and self._queued() - queued != requests:
            raise LoadTestError(f"of {requests} submissions not all were accepted")
        latencies_ms = [1000 * each_s for each_s in latencies_s]
        return Turn(
            per_s=requests / took_s,
            p50_ms=percentile(latencies_ms, 50),
            p99_ms=percentile(latencies_ms, 99),
            server_us=1e6 * server_s / requests,
            client_share=client_s / took_s,
        )

    def _request(self, name: str) -> bytes:
        if name == "set":
            return command("SET", f"{CELL}:bare:{new_id(Kind.VIDEO)}", self._value)
        return self._submit.encoded(Submission.drawn(self._draw, f"user{next(self._users)}"))

    def _numbers(self) -> Iterator[int]:
        while True:
            yield from self._draw.sample(range(USERS), USERS)

    def _queued(self) -> int:
        queued: int = ask(self._control, "ZCARD", self._cell.key("queued", POOL))
        return queued

    def _server_s(self) -> float:
        cpu = info(self._control, "cpu")
        return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def _limits(now: Sequence[str]) -> Limits:
    """Every limit there is, none of them reached."""
    today_ms = int(now[0]) * 1000 // DAY_MS * DAY_MS
    return Limits(
        tier="pro",
        inside=ServiceClass.STANDARD,
        beyond="relaxed",
        generations=100_000,
        gpu_ms=10**12,
        queued_jobs=100_000,
        requests_per_minute=300,
        days_ms=[today_ms + days * DAY_MS for days in (-1, 0, 1, 2)],
        surge_generations=50_000,
        surge_inside=ServiceClass.RELAXED,
        surge_ms=10**12,
    )
