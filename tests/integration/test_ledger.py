"""The credit ledger: each promise by its story, the same in Redis and in SQLite."""

from __future__ import annotations

import asyncio
import csv
import json
import multiprocessing
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from quota.export import export_csv, export_json
from quota.ledger import EntryType, HoldState, Kind, Ledger, Settlement
from quota.redis_ledger import RedisLedger
from quota.sqlite_ledger import SqliteLedger
from quota.verify import verify
from serving.jobs import Cell
from serving.plan.errors import InvalidRequest, LedgerRefused

pytestmark = pytest.mark.asyncio

HOUR_MS = 3_600_000
PROCESSES = 16


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest_asyncio.fixture(params=["redis", "sqlite"])
async def ledger(
    request: pytest.FixtureRequest, cell: Cell, tmp_path: Path
) -> AsyncIterator[Ledger]:
    """Either implementation; in Redis, what was left behind must verify."""
    if request.param == "sqlite":
        sqlite_ledger = SqliteLedger(tmp_path / "ledger.db", now_ms)
        yield sqlite_ledger
        sqlite_ledger.close()
    else:
        yield RedisLedger(cell)
        assert (await verify(cell)).differences == []


async def bought(ledger: Ledger, ref: str = "pay_1", amount: int = 100, user: str = "ann") -> str:
    return await ledger.grant(user, ref=ref, amount=amount, kind=Kind.PURCHASE)


async def figures(ledger: Ledger, user: str = "ann") -> tuple[int, int, int]:
    balance = await ledger.balance(user)
    return balance.spendable, balance.held, balance.debt


async def refused(call: object, code: str) -> None:
    with pytest.raises(LedgerRefused) as refusal:
        await call  # type: ignore[misc]
    assert refusal.value.code == code


async def test_a_payment_is_granted_once(ledger: Ledger) -> None:
    first = await bought(ledger)
    assert await bought(ledger) == first
    assert await figures(ledger) == (100, 0, 0)
    await refused(bought(ledger, amount=101), "ref_reused")
    await refused(bought(ledger, user="bob"), "ref_reused")
    assert [entry.id for entry in await ledger.entries()] == [first]


async def test_a_hold_is_captured_up_to_its_amount_and_the_rest_comes_back(ledger: Ledger) -> None:
    await bought(ledger)
    await ledger.hold("ann", "video_1", 60)
    assert await figures(ledger) == (40, 60, 0)
    await refused(ledger.capture("video_1", 61), "amount_too_large")
    assert await ledger.capture("video_1", 45) == Settlement(HoldState.CAPTURED, 45)
    assert await figures(ledger) == (55, 0, 0)


async def test_a_hold_is_settled_once_and_whoever_comes_later_hears_how(ledger: Ledger) -> None:
    await bought(ledger)
    for settle_first in (ledger.release, lambda job: ledger.capture(job, 10)):
        job = f"video_{settle_first.__name__}"
        await ledger.hold("ann", job, 10)
        await ledger.hold("ann", job, 10)
        first = await settle_first(job)
        assert await ledger.capture(job, 5) == first
        assert await ledger.release(job) == first
        await refused(ledger.hold("ann", job, 10), "hold_settled")
        await refused(ledger.hold("ann", job, 11), "ref_reused")
    assert await figures(ledger) == (90, 0, 0)
    assert await ledger.release("video_of_nobody") is None


async def test_what_is_not_there_is_not_spent(ledger: Ledger) -> None:
    await bought(ledger, amount=10)
    await refused(ledger.hold("ann", "video_1", 11), "insufficient_credits")
    await refused(ledger.hold("bob", "video_1", 1), "insufficient_credits")
    await ledger.hold("ann", "video_1", 10)
    await refused(ledger.hold("ann", "video_2", 1), "insufficient_credits")


async def test_grants_are_used_by_priority_then_expiry_then_age(ledger: Ledger) -> None:
    soon, later = now_ms() + HOUR_MS, now_ms() + 2 * HOUR_MS
    buy = Kind.PURCHASE
    await ledger.grant("ann", ref="e", amount=1, kind=buy)
    await ledger.grant("ann", ref="d", amount=1, kind=buy, expires_ms=later)
    await ledger.grant("ann", ref="c", amount=1, kind=buy, expires_ms=soon)
    await ledger.grant("ann", ref="b", amount=1, kind=Kind.PROMOTION)
    await ledger.grant("ann", ref="a", amount=1, kind=Kind.ADJUSTMENT, priority=0, expires_ms=soon)
    order = ["a", "b", "c", "d", "e"]
    assert [grant.ref for grant in (await ledger.balance("ann")).grants] == order
    await ledger.hold("ann", "video_1", 3)
    assert [grant.ref for grant in (await ledger.balance("ann")).grants] == ["d", "e"]
    # What is not taken comes back to where it was taken from last.
    await ledger.capture("video_1", 1)
    assert [grant.ref for grant in (await ledger.balance("ann")).grants] == order[1:]


async def test_a_refund_takes_what_is_left_and_the_rest_is_owed(ledger: Ledger) -> None:
    await bought(ledger)
    await ledger.hold("ann", "video_1", 60)
    await ledger.capture("video_1", 60)
    await bought(ledger, "pay_2", 7)
    first = await ledger.reverse("pay_1", ref="refund_1", reason="asked for it")
    assert await ledger.reverse("pay_1", ref="refund_1") == first
    # The other grant is there, and nothing is spent while something is owed.
    assert await figures(ledger) == (0, 0, 60)
    assert [grant.left for grant in (await ledger.balance("ann")).grants] == [7]
    await refused(ledger.hold("ann", "video_2", 1), "credits_owed")
    await refused(ledger.take("ann", ref="t", amount=1, reason="x"), "credits_owed")
    await refused(ledger.reverse("pay_1", ref="refund_2"), "already_reversed")
    # A later grant pays first.
    await bought(ledger, "pay_3", 65)
    assert await figures(ledger) == (12, 0, 0)


async def test_a_dispute_that_is_won_restores(ledger: Ledger) -> None:
    await bought(ledger)
    await ledger.hold("ann", "video_1", 60)
    await ledger.capture("video_1", 60)
    await ledger.reverse("pay_1", ref="dispute_1")
    await ledger.reverse("dispute_1", ref="won_1")
    await ledger.reverse("dispute_1", ref="won_1")
    assert await figures(ledger) == (40, 0, 0)
    await refused(ledger.reverse("dispute_1", ref="won_2"), "already_reversed")
    await refused(ledger.reverse("won_1", ref="lost_1"), "unknown_ref")
    await ledger.reverse("pay_1", ref="dispute_2")
    assert await figures(ledger) == (0, 0, 60)


async def test_what_had_expired_pays_no_debt_when_its_dispute_is_won(ledger: Ledger) -> None:
    await bought(ledger)
    await ledger.hold("ann", "video_1", 100)
    await ledger.capture("video_1", 100)
    await ledger.grant("ann", ref="p", amount=40, kind=Kind.PURCHASE, expires_ms=now_ms() + 300)
    await ledger.reverse("pay_1", ref="refund_1", amount=100)
    while not await ledger.expire():
        await asyncio.sleep(0.05)
    await ledger.reverse("p", ref="dispute_1")
    assert await figures(ledger) == (0, 0, 100)
    await ledger.reverse("dispute_1", ref="won_1")
    assert await figures(ledger) == (0, 0, 100)
    # Nor does it come back otherwise, and it may be taken back once more.
    await ledger.reverse("p", ref="dispute_2")
    assert await figures(ledger) == (0, 0, 100)


async def test_a_part_may_be_refunded(ledger: Ledger) -> None:
    await bought(ledger)
    await ledger.reverse("pay_1", ref="refund_1", amount=30)
    await refused(ledger.reverse("pay_1", ref="refund_2", amount=71), "amount_too_large")
    assert await figures(ledger) == (70, 0, 0)
    await ledger.reverse("pay_1", ref="refund_2", amount=70)
    assert await figures(ledger) == (0, 0, 0)


async def test_a_refund_under_a_ref_that_stands_for_another_amount_is_refused(
    ledger: Ledger,
) -> None:
    await bought(ledger)
    entry = await ledger.reverse("pay_1", ref="refund_1", amount=30)
    assert await ledger.reverse("pay_1", ref="refund_1", amount=30) == entry
    assert await ledger.reverse("pay_1", ref="refund_1") == entry
    with pytest.raises(LedgerRefused) as refused:
        await ledger.reverse("pay_1", ref="refund_1", amount=40)
    assert refused.value.code == "ref_reused"
    assert await figures(ledger) == (70, 0, 0)


async def test_a_price_may_be_paid_from_as_many_grants_as_a_user_may_have(ledger: Ledger) -> None:
    for n in range(1000):
        await ledger.grant("ann", ref=f"{n:0200}", amount=2, kind=Kind.PROMOTION)
    with pytest.raises(LedgerRefused) as refused:
        await ledger.grant("ann", ref="one_more", amount=2, kind=Kind.PROMOTION)
    assert refused.value.code == "too_many_grants"
    await ledger.hold("ann", "video_1", 1999)
    assert await figures(ledger) == (1, 1999, 0)
    assert await ledger.capture("video_1", 999) == Settlement(HoldState.CAPTURED, 999)
    await ledger.hold("ann", "video_2", 1001)
    await ledger.release("video_2")
    await ledger.take("ann", ref="oops", amount=1001, reason="x")
    assert await figures(ledger) == (0, 0, 0)


async def test_what_a_hold_gives_back_pays_what_is_owed(ledger: Ledger) -> None:
    await bought(ledger)
    await ledger.hold("ann", "video_1", 60)
    await ledger.reverse("pay_1", ref="refund_1")
    assert await figures(ledger) == (0, 60, 60)
    await ledger.release("video_1")
    assert await figures(ledger) == (0, 0, 0)


async def test_an_adjustment_downwards_takes_no_more_than_is_there(ledger: Ledger) -> None:
    await bought(ledger)
    first = await ledger.take("ann", ref="oops", amount=30, reason="granted twice by hand")
    assert await ledger.take("ann", ref="oops", amount=30, reason="again") == first
    await refused(ledger.take("ann", ref="more", amount=71, reason="x"), "insufficient_credits")
    await refused(ledger.take("ann", ref="oops", amount=31, reason="x"), "ref_reused")
    # So much of the payment is back already.
    await ledger.reverse("pay_1", ref="refund_1")
    assert await figures(ledger) == (0, 0, 0)


async def test_credits_that_would_have_expired_are_not_granted(ledger: Ledger) -> None:
    past = now_ms() - HOUR_MS
    await refused(
        ledger.grant("ann", ref="p", amount=1, kind=Kind.PROMOTION, expires_ms=past),
        "grant_expired",
    )


@pytest.mark.parametrize("amount", [0, -1, 2**53])
async def test_an_amount_that_is_none_is_refused(ledger: Ledger, amount: int) -> None:
    with pytest.raises(InvalidRequest):
        await bought(ledger, amount=amount)
    with pytest.raises(InvalidRequest):
        await ledger.hold("ann", "video_1", amount)
    assert await ledger.entries() == []


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "é", "x" * 201])
async def test_a_name_that_is_none_is_refused(ledger: Ledger, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await bought(ledger, ref=name)
    with pytest.raises(InvalidRequest):
        await ledger.hold(name, "video_1", 1)


async def test_large_amounts_are_exact(ledger: Ledger) -> None:
    most = 2**53 - 1
    await bought(ledger, amount=most)
    await ledger.hold("ann", "video_1", most - 2)
    await ledger.capture("video_1", most - 4)
    assert await figures(ledger) == (4, 0, 0)
    await refused(bought(ledger, "pay_2", 1), "ledger_full")
    assert (await ledger.entries())[-1].postings["cell:earned"] == most - 4


async def test_a_users_history_has_pages_newest_first(ledger: Ledger) -> None:
    made = [await bought(ledger, f"pay_{i}", 1 + i) for i in range(5)]
    await bought(ledger, "other", user="bob")
    first = await ledger.history("ann", limit=2)
    assert [entry.id for entry in first] == made[:-3:-1]
    rest = await ledger.history("ann", before=first[-1].id, limit=10)
    assert [entry.id for entry in rest] == made[2::-1]
    assert rest[-1].postings == {"cell:issued": -1, "grant:pay_0": 1}


async def test_it_is_exported_as_csv_and_as_json(ledger: Ledger) -> None:
    await ledger.grant("ann", ref="p", amount=5, kind=Kind.PROMOTION, reason='a "gift", it is')
    await ledger.hold("ann", "video_1", 2)
    rows = list(csv.DictReader([line async for line in export_csv(ledger)]))
    assert [(row["account"], int(row["amount"])) for row in rows[:2]] == [
        ("cell:issued", -5),
        ("grant:p", 5),
    ]
    assert {row["reason"] for row in rows[:2]} == {'a "gift", it is'}
    lines = [json.loads(line) async for line in export_json(ledger)]
    assert [line["type"] for line in lines] == [EntryType.GRANT, EntryType.HOLD]
    assert lines[1]["postings"] == {"hold:video_1": 2, "grant:p": -2}


async def test_a_bad_posting_cannot_be_written(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db", now_ms)
    bad: list[dict[str, int]] = [
        {"grant:x": 5, "cell:issued": -4},
        {"grant:x": -5, "cell:issued": 5},
        {"cell:earned": -5, "cell:expired": 5},
        {"bank:x": 5, "cell:issued": -5},
        {"debt:ann": 5, "cell:issued": -5},
        {},
    ]
    for postings in bad:
        with pytest.raises(sqlite3.IntegrityError), ledger._writing():
            ledger.post(EntryType.GRANT, "ann", postings, ref="x", kind=Kind.PURCHASE, priority=1)
    assert await ledger.entries() == []
    await bought(ledger)
    for change in (
        "UPDATE postings SET amount = 2 * amount",
        "DELETE FROM postings",
        "UPDATE entries SET user = 'bob'",
        "DELETE FROM seals",
        "INSERT INTO postings VALUES (1, 'cell:earned', 1)",
        "INSERT INTO entries VALUES (9, 'hold', 'ann', 1, NULL, 'x', NULL, NULL, NULL, '', 9)",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            ledger._db.execute(change)
    assert await figures(ledger) == (100, 0, 0)
    ledger.close()


def forged(cell: Cell, entry: str) -> tuple[object, ...]:
    return ("XADD", cell.key("ledger"), "*", "user", "ann", "at_ms", "1", *entry.split())


SPOILS: list[tuple[Callable[[Cell], tuple[object, ...]], str]] = [
    (lambda c: ("HINCRBY", c.key("credits", "ann"), "available", 1), "ann: available"),
    (lambda c: ("HINCRBY", c.key("credits", "ann"), "debt", 1), "ann: debt"),
    (lambda c: ("HSET", c.key("credit", "pay_1"), "left", 9), "grant pay_1: left"),
    (lambda c: ("DEL", c.key("credit", "pay_1")), "grant pay_1: user"),
    (lambda c: ("HSET", c.key("hold", "video_1"), "state", "released"), "hold video_1: state"),
    (lambda c: ("DEL", c.key("hold", "video_1")), "hold video_1: amount"),
    (lambda c: ("DEL", c.key("grants", "ann")), "ann: grants to use"),
    (lambda c: ("HINCRBY", c.key("ledger", "accounts"), "earned", 1), "cell: earned"),
    (lambda c: ("HSET", c.key("credits", "eve"), "available", 5), "credits eve"),
    (lambda c: ("HSET", c.key("credit", "forged"), "left", 5), "credit forged"),
    (
        lambda c: forged(c, "type grant ref x kind purchase grant:x 5 cell:issued -4"),
        "do not add up",
    ),
    (lambda c: ("XADD", c.key("ledger"), "*", "nonsense", "1"), "cannot be read"),
    (
        lambda c: forged(c, "type release of video_0 hold:video_0 -5 grant:pay_1 5"),
        "was captured before",
    ),
]


@pytest.mark.parametrize(("spoil", "found"), SPOILS)
async def test_whatever_is_changed_behind_the_ledgers_back_is_found(
    cell: Cell, spoil: Callable[[Cell], tuple[object, ...]], found: str
) -> None:
    ledger = RedisLedger(cell)
    await bought(ledger)
    await ledger.hold("ann", "video_0", 10)
    await ledger.capture("video_0", 10)
    await ledger.hold("ann", "video_1", 10)
    assert (await verify(cell)).differences == []
    await cell.redis.execute_command(*spoil(cell))
    assert any(found in difference for difference in (await verify(cell)).differences)


async def test_it_verifies_while_work_goes_on(cell: Cell) -> None:
    ledger = RedisLedger(cell)
    await asyncio.gather(*(bought(ledger, f"pay_{i}", 1000, f"user_{i}") for i in range(60)))
    going = True

    async def work(user: str) -> None:
        for n in range(10_000):
            if not going:
                return
            await ledger.hold(user, f"{user}_{n}", 1)
            await ledger.capture(f"{user}_{n}", n % 2)

    working = [asyncio.create_task(work(f"user_{i}")) for i in range(0, 60, 7)]
    for _ in range(5):
        assert (await verify(cell)).differences == []
    going = False
    await asyncio.gather(*working)
    assert (await verify(cell)).entries > 60


async def test_a_settled_hold_is_forgotten_and_a_held_one_is_not(cell: Cell) -> None:
    ledger = RedisLedger(cell)
    await bought(ledger)
    await ledger.hold("ann", "video_1", 10)
    await ledger.hold("ann", "video_2", 10)
    await ledger.release("video_1")
    assert await cell.redis.pttl(cell.key("hold", "video_1")) > 0
    assert await cell.redis.pttl(cell.key("hold", "video_2")) == -1
    await cell.redis.delete(cell.key("hold", "video_1"))
    assert (await verify(cell)).differences == []


def spend(url: str, process: int, won: multiprocessing.SimpleQueue[int]) -> None:
    """Try to be the one who spends ann's last credit."""

    async def try_it() -> None:
        redis: Redis = Redis.from_url(url, decode_responses=True)
        ledger = RedisLedger(Cell(redis))
        with suppress(LedgerRefused):
            await ledger.hold("ann", f"video_{process}", 1000)
            won.put(process)
        await redis.aclose()

    asyncio.run(try_it())


async def test_sixteen_processes_spend_the_last_credit_once(
    cell: Cell, redis_server: RedisServer
) -> None:
    await bought(RedisLedger(cell), amount=1000)
    context = multiprocessing.get_context("spawn")
    won = context.SimpleQueue()
    url = redis_server.url
    racers = [context.Process(target=spend, args=(url, i, won)) for i in range(PROCESSES)]
    for racer in racers:
        racer.start()
    for racer in racers:
        await asyncio.to_thread(racer.join)
        assert racer.exitcode == 0
    winner = won.get()
    assert won.empty()
    entries = await RedisLedger(cell).entries()
    assert [entry.of for entry in entries if entry.type is EntryType.HOLD] == [f"video_{winner}"]
    assert (await verify(cell)).differences == []
