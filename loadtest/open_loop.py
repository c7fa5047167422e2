"""Requests at a steady rate, whatever becomes of the earlier ones, and the most a server takes.

In the open loop each request has a time at which it is due, and its latency counts from then:
a server that stalls is charged for everybody it kept waiting ("coordinated omission" is what
a client does that waits for one answer before it asks again). In the closed loop a number of
connections each ask again as soon as they were answered, which finds the highest rate.

``python -m loadtest.open_loop`` is the load generator's own process: it reads a plan from
stdin and writes its outcome to stdout, both as JSON, so that what is measured does not share
an event loop with it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.connection import Address, Answer, Connection
from loadtest.errors import LoadTestError
from loadtest.summary import percentile

CONNECTIONS_MAX = 256
ANSWER_S_MAX = 10.0
START_S_MAX = 30.0
LEAD_S = 0.05
REQUESTS_MAX = 200_000


@dataclass(frozen=True)
class Plan:
    """One phase. A ``rate_per_s`` makes it an open loop, ``connections`` a closed one.

    ``fields`` is the JSON body; each request gets a ``seed`` of its own in it.
    """

    url: str
    key: str
    method: str
    path: str
    seconds: float
    fields: dict[str, Any] | None = None
    rate_per_s: float | None = None
    connections: int | None = None


@dataclass(frozen=True)
class Sample:
    """One request: when it was answered and sent, in milliseconds after it was due."""

    latency_ms: float
    sent_ms: float
    answer: Answer | None
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.answer is not None and self.answer.status == 200


@dataclass(frozen=True)
class Outcome:
    """What a phase measured. ``latencies_ms`` are those of requests that succeeded."""

    latencies_ms: list[float]
    elapsed_s: float
    ids: list[str]
    errors: dict[str, int]
    sent_late_p99_ms: float
    generator_cpu_share: float

    @property
    def per_s(self) -> float:
        return len(self.latencies_ms) / self.elapsed_s


def due_times_s(rate_per_s: float, seconds: float) -> list[float]:
    """When each request is due, evenly spaced from 0 up to ``seconds``."""
    count = round(rate_per_s * seconds)
    if not 1 <= count <= REQUESTS_MAX:
        raise ValueError(f"{count} requests; from 1 to {REQUESTS_MAX} are possible")
    return [index / rate_per_s for index in range(count)]


def run(plan: Plan) -> Outcome:
    """Run ``plan`` in a process of its own. :class:`LoadTestError` when that one fails."""
    limit_s = plan.seconds + ANSWER_S_MAX + START_S_MAX
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "loadtest.open_loop"],
            input=json.dumps(asdict(plan)),
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        raise LoadTestError(f"the load generator did not end within {limit_s:g} s") from None
    if done.returncode:
        raise LoadTestError(f"the load generator failed:\n{done.stderr}")
    return Outcome(**json.loads(done.stdout))


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    outcome = asyncio.run(_measure(plan))
    json.dump(asdict(outcome), sys.stdout)


async def _measure(plan: Plan) -> Outcome:
    generator = Generator(plan)
    cpu, began = time.process_time(), time.perf_counter()
    if plan.rate_per_s is not None:
        samples = await generator.open_loop(due_times_s(plan.rate_per_s, plan.seconds))
    else:
        samples = await generator.closed_loop(plan.connections or 1, plan.seconds)
    elapsed_s = time.perf_counter() - began
    return _outcome(samples, elapsed_s, time.process_time() - cpu)


def _outcome(samples: Sequence[Sample], elapsed_s: float, cpu_s: float) -> Outcome:
    done = [sample for sample in samples if sample.ok]
    bodies = [json.loads(sample.answer.body) for sample in done if sample.answer]
    return Outcome(
        latencies_ms=[round(sample.latency_ms, 3) for sample in done],
        elapsed_s=elapsed_s,
        ids=[body["id"] for body in bodies if "id" in body],
        errors=dict(Counter(sample.error for sample in samples if not sample.ok)),
        sent_late_p99_ms=round(percentile([sample.sent_ms for sample in samples], 99), 3),
        generator_cpu_share=round(cpu_s / elapsed_s, 3),
    )


class Generator:
    """Sends the requests of one plan over at most CONNECTIONS_MAX keep-alive connections."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._address = Address.of(plan.url)
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS_MAX)
        self._count = 0

    async def open_loop(self, due_s: Sequence[float]) -> list[Sample]:
        """One request at each of ``due_s`` from now, whether earlier ones were answered or not."""
        clock = asyncio.get_running_loop().time
        began = clock() + LEAD_S
        async with asyncio.TaskGroup() as group:
            tasks = []
            for offset in due_s:
                due = began + offset
                await asyncio.sleep(max(0.0, due - clock()))
                tasks.append(group.create_task(self.send(due)))
        self._close()
        return [task.result() for task in tasks]

    async def closed_loop(self, connections: int, seconds: float) -> list[Sample]:
        """As many requests as ``connections`` get answered one after the other."""
        clock = asyncio.get_running_loop().time
        ends = clock() + seconds
        samples: list[Sample] = []

        async def ask() -> None:
            while clock() < ends and len(samples) < REQUESTS_MAX:
                samples.append(await self.send(clock()))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(connections, CONNECTIONS_MAX)):
                group.create_task(ask())
        self._close()
        return samples

    async def send(self, due: float) -> Sample:
        """One request, now, that was due then (on the loop's clock). Raises nothing."""
        clock = asyncio.get_running_loop().time
        answer, error, sent = None, "", due
        async with self._free:
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    connection = await self._connection()
                    sent = clock()
                    answer = await connection.send(self._request())
                self._idle.append(connection)
            except TimeoutError:
                error = f"no answer within {ANSWER_S_MAX:g} s"
            except (OSError, EOFError, ValueError) as problem:
                error = f"{type(problem).__name__}: {problem}"
        if answer is not None and answer.status != 200:
            error = f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}"
        ended = clock()
        return Sample(1000 * (ended - due), 1000 * (sent - due), answer, error)

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return await Connection.to(self._address)

    def _request(self) -> bytes:
        plan, fields = self._plan, self._plan.fields
        self._count += 1
        if fields is not None:
            fields = {**fields, "seed": self._count}
        return self._address.request(plan.method, plan.path, plan.key, fields)

    def _close(self) -> None:
        for connection in self._idle:
            connection.close()


if __name__ == "__main__":
    main()
