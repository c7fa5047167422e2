"""Sixteen processes that want the same at the same moment, from a real Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from serving.jobs import Cell, JobQueue, Limits
from tests.jobs import submit
from tests.queue_state import check, read_state
from tests.tools import ROOT

pytestmark = pytest.mark.asyncio

PROCESSES = 16
TODAY = [0, 10**14]


class Racers:
    """Processes that are ready for one race after the other."""

    def __init__(self, url: str, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.url, self.processes = url, processes

    def race(self, submits: Sequence[list[dict[str, Any]]], **settings: int) -> list[list[str]]:
        """What became of each submission: outcome and id. One list for each process."""
        for racer, each in zip(self.processes, submits, strict=True):
            _say(racer, json.dumps({"url": self.url, "settings": settings, "submits": each}))
        for racer in self.processes:
            assert _hear(racer) == "ready"
        for racer in self.processes:
            _say(racer, "go")
        return [words.split() for racer in self.processes for words in json.loads(_hear(racer))]


def _say(racer: subprocess.Popen[str], line: str) -> None:
    assert racer.stdin
    racer.stdin.write(f"{line}\n")
    racer.stdin.flush()


def _hear(racer: subprocess.Popen[str]) -> str:
    assert racer.stdout
    return racer.stdout.readline().strip()


@pytest.fixture(scope="module")
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.racing"]
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                subprocess.Popen(
                    command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(PROCESSES)
        ]


@pytest.fixture
def racers(redis_server: RedisServer, processes: list[subprocess.Popen[str]]) -> Racers:
    return Racers(redis_server.url, processes)


def job(n: int, **more: Any) -> dict[str, Any]:
    return {"job_id": f"video_{n}", "user": "ann", "est_device_ms": 1000, **more}


@pytest.mark.parametrize(
    ("beyond", "otherwise"), [("relaxed", "relaxed"), ("refuse", "insufficient_quota")]
)
@pytest.mark.parametrize("limit", ["generations", "gpu_ms"])
async def test_the_last_of_an_allowance_is_given_once(
    racers: Racers, cell: Cell, redis: Redis, limit: str, beyond: str, otherwise: str
) -> None:
    most = {"generations": 3} if limit == "generations" else {"gpu_ms": 3500}
    limits: dict[str, Any] = {"beyond": beyond, "days_ms": TODAY, **most}
    for n in range(2):
        await submit(JobQueue(cell), job_id=f"before{n}", limits=Limits(**limits))
    said = racers.race([[job(n, limits=limits)] for n in range(PROCESSES)])
    assert Counter(outcome for outcome, _ in said) == {"standard": 1, otherwise: PROCESSES - 1}
    state = await read_state(redis)
    used = state.hashes["used:ann"]
    assert (used["generations"], used["gpu_ms"]) == ("3", "3000")
    assert len(state.jobs) == (PROCESSES if beyond == "relaxed" else 1) + 2
    check(state)


async def test_one_idempotency_key_is_one_job_and_one_retry_is_none(
    racers: Racers, cell: Cell, redis: Redis
) -> None:
    """Half of the users' duplicates go by their key, the others by their body."""
    wishes = {
        "ann": {"body_sha256": "a", "idempotency_key": "key"},
        "bob": {"body_sha256": "b", "retried": True},
    }
    # Each process sends both, and both again, on connections of their own.
    said = racers.race(
        [
            [
                {**job(n), "job_id": f"{user}{n}_{again}", "user": user, "wish": wish}
                for user, wish in wishes.items()
                for again in range(2)
            ]
            for n in range(PROCESSES)
        ]
    )
    for user in wishes:
        mine = [(outcome, job_id) for outcome, job_id in said if job_id.startswith(user)]
        assert len({job_id for _, job_id in mine}) == 1
        assert Counter(outcome for outcome, _ in mine) == {
            "standard": 1,
            "replayed": 2 * PROCESSES - 1,
        }
    state = await read_state(redis)
    assert len(state.jobs) == 2
    check(state)


async def test_two_bodies_under_one_key_are_one_job_and_the_other_is_told(
    racers: Racers, cell: Cell
) -> None:
    said = racers.race(
        [
            [job(n, wish={"body_sha256": "ab"[n % 2], "idempotency_key": "key"})]
            for n in range(PROCESSES)
        ]
    )
    assert Counter(outcome for outcome, _ in said) == {
        "standard": 1,
        "replayed": PROCESSES // 2 - 1,
        "idempotency_key_reused": PROCESSES // 2,
    }


@pytest.mark.parametrize(
    ("limits", "settings", "refused"),
    [
        ({}, {"queue_max": 22}, "queue_full"),  # of which the last tenth is for burst
        ({"queued_jobs": 20}, {}, "too_many_queued_jobs"),
        ({"requests_per_minute": 20}, {}, "rate_limit_exceeded"),
    ],
)
async def test_no_bound_is_passed_by_one(
    racers: Racers,
    cell: Cell,
    redis: Redis,
    limits: dict[str, int],
    settings: dict[str, int],
    refused: str,
) -> None:
    said = racers.race(
        [[job(10 * n + i, limits=limits) for i in range(4)] for n in range(PROCESSES)], **settings
    )
    expected = {"standard": 20, refused: 4 * PROCESSES - 20}
    found = Counter(outcome for outcome, _ in said)
    assert found == expected
    state = await read_state(redis)
    assert len(state.zsets["queued:demo-wan"]) == 20
    check(state)


async def test_a_duplicate_call_for_one_id_is_one_job(racers: Racers, cell: Cell) -> None:
    """An ingress that asks again while its first call is still on the way."""
    limits = {"generations": 1, "beyond": "refuse", "days_ms": TODAY}
    said = racers.race([[job(0, limits=limits)] for _ in range(PROCESSES)])
    assert said == [["standard", "video_0"]] * PROCESSES
