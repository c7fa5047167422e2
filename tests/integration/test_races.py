"""Sixteen processes that want the same at the same moment, from a real Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.ledger import Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import Cell, JobQueue, Leases, Limits
from serving.plan.errors import StaleLease
from tests.jobs import leased, submit
from tests.queue_state import check, read_state
from tests.tools import ROOT

pytestmark = pytest.mark.asyncio

PROCESSES = 16
TODAY = [0, 10**14]


class Racers:
    """Processes that are ready for one race after the other."""

    def __init__(self, url: str, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.url, self.processes = url, processes

    def race(self, calls: Sequence[list[dict[str, Any]]], **settings: int) -> list[list[str]]:
        """What became of each call, a submission unless it says otherwise: outcome and id. One
        list for each process."""
        for racer, each in zip(self.processes, calls, strict=True):
            _say(racer, json.dumps({"url": self.url, "settings": settings, "calls": each}))
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


PRICE = 40
PAID = {
    "price": PRICE,
    "limits": {"generations": 0, "beyond": "refuse", "days_ms": TODAY},
    "wish": {"max_credits": PRICE},
}


@pytest_asyncio.fixture
async def ledger(cell: Cell) -> AsyncIterator[RedisLedger]:
    """With enough for one clip, and not for two. What was left behind is sound."""
    ledger = RedisLedger(cell)
    await ledger.grant("ann", ref="gift", amount=PRICE // 2, kind=Kind.PROMOTION)
    await ledger.grant("ann", ref="pay", amount=PRICE, kind=Kind.PURCHASE)
    yield ledger
    check(await read_state(cell.redis))
    assert (await verify(cell)).differences == []


async def written(ledger: RedisLedger) -> Counter[str]:
    return Counter(entry.type for entry in await ledger.entries())


async def test_the_last_credit_is_spent_once(
    racers: Racers, ledger: RedisLedger, redis: Redis
) -> None:
    """Each process asks for two clips."""
    said = racers.race([[job(2 * n + i, **PAID) for i in range(2)] for n in range(PROCESSES)])
    assert Counter(outcome for outcome, _ in said) == {
        "burst": 1,
        "insufficient_credits": 2 * PROCESSES - 1,
    }
    assert await written(ledger) == {"grant": 2, "hold": 1}
    has = await ledger.balance("ann")
    assert (has.spendable, has.held) == (PRICE // 2, PRICE)
    (paid,) = (await read_state(redis)).jobs.values()
    assert paid["credits"] == str(PRICE)


@pytest.mark.parametrize("again", range(4))
async def test_a_run_that_all_want_to_end_is_settled_once(
    racers: Racers, ledger: RedisLedger, cell: Cell, redis: Redis, again: int
) -> None:
    """It is stored and it fails, its owner gives it up, and its lease has run out."""
    racers.race([[job(0, **PAID)], *[[]] * (PROCESSES - 1)])
    await leased(Leases(cell, "demo-wan", "r1"), lease_ms=1)
    ends = ("completed", "cancelled", "tidied", "failed") * (PROCESSES // 4)
    said = racers.race(
        [[{"do": "end", "job_id": "video_0", "how": how}] for how in ends[again:] + ends[:again]]
    )
    state = (await read_state(redis)).jobs["video_0"]["state"]
    kind, left = ("capture", PRICE // 2) if state == "completed" else ("release", 3 * PRICE // 2)
    assert await written(ledger) == {"grant": 2, "hold": 1, kind: 1}
    has = await ledger.balance("ann")
    assert (has.spendable, has.held) == (left, 0)
    # Whoever was told that it ended was told how; those who came too late, that they did.
    told = {outcome for outcome, _ in said}
    assert told <= {state, "tidied", StaleLease.code}


@pytest.mark.parametrize("again", range(4))
async def test_a_job_that_waits_and_all_want_to_end_is_given_back_once(
    racers: Racers, ledger: RedisLedger, redis: Redis, again: int
) -> None:
    """It waited for too long, its owner cancels and deletes it, and it is submitted again."""
    racers.race([[job(0, **PAID)], *[[]] * (PROCESSES - 1)])
    ends = ("cancelled", "tidied", "submit", "deleted") * (PROCESSES // 4)
    racers.race(
        [
            [job(0, **PAID) if how == "submit" else {"do": "end", "job_id": "video_0", "how": how}]
            for how in ends[again:] + ends[:again]
        ]
    )
    assert (await read_state(redis)).jobs == {}
    assert await written(ledger) == {"grant": 2, "hold": 1, "release": 1}
    has = await ledger.balance("ann")
    assert (has.spendable, has.held) == (3 * PRICE // 2, 0)


@pytest.mark.parametrize("amounts", [(100, 100), (100, 101)])
async def test_a_payment_that_all_report_is_granted_once(
    racers: Racers, ledger: RedisLedger, amounts: tuple[int, int]
) -> None:
    said = racers.race(
        [
            [{"do": "grant", "user": "bob", "ref": "stripe:1", "amount": amounts[n % 2]}]
            for n in range(PROCESSES)
        ]
    )
    (entry,) = [each for each in await ledger.entries() if each.user == "bob"]
    told = Counter(outcome for outcome, _ in said)
    alike = PROCESSES if amounts[0] == amounts[1] else PROCESSES // 2
    assert told == Counter({entry.id: alike, "ref_reused": PROCESSES - alike})
    assert (await ledger.balance("bob")).spendable in amounts
