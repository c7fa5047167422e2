"""Jobs paid from credits: held when admitted, taken when they are made, or given back."""

from __future__ import annotations

import time

import pytest
import pytest_asyncio

from quota.ledger import EntryType, Kind
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.jobs import Admission, Cell, JobQueue, JobSettings, Leases, Limits, State, Upkeep, Wish
from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.errors import InsufficientCredits, InsufficientQuota, ModelFailed
from tests.jobs import leased, spec

pytestmark = pytest.mark.asyncio

DAY_MS = 24 * 3600 * 1000
PRICE = 400
PRIORITY = Wish(ServiceTier.PRIORITY)


def limits_of(beyond: str, generations: int = 0, inside: str = "standard") -> Limits:
    midnight_ms = int(time.time() * 1000) // DAY_MS * DAY_MS
    days_ms = [midnight_ms + DAY_MS * days for days in (-1, 0, 1, 2)]
    return Limits(
        "free",
        inside=ServiceClass(inside),
        generations=generations,
        beyond=beyond,
        days_ms=days_ms,
    )


@pytest_asyncio.fixture
async def ledger(cell: Cell) -> RedisLedger:
    ledger = RedisLedger(cell)
    await ledger.grant("ann", ref="pay_1", amount=1000, kind=Kind.PURCHASE)
    return ledger


async def ask(
    queue: JobQueue,
    job_id: str = "video_1",
    *,
    limits: Limits | None = None,
    wish: Wish = PRIORITY,
    price: int | None = PRICE,
    user: str = "ann",
    dry: bool = False,
) -> Admission:
    return await queue.submit(
        job_id,
        user=user,
        alias="sora-2",
        spec=spec(),
        est_device_ms=1000,
        price=price,
        limits=limits_of("refuse") if limits is None else limits,
        wish=wish,
        dry=dry,
    )


async def figures(ledger: RedisLedger, user: str = "ann") -> tuple[int, int]:
    """What may be spent and what is held, of books that verify."""
    assert (await verify(ledger.cell)).differences == []
    balance = await ledger.balance(user)
    return balance.spendable, balance.held


SAID = [
    ("refuse", Wish(ServiceTier.PRIORITY)),
    ("refuse", Wish(ServiceTier.PRIORITY, max_credits=PRICE)),
    ("refuse", Wish(max_credits=PRICE)),
    ("relaxed", Wish(max_credits=PRICE)),
    ("relaxed", Wish(ServiceTier.DEFAULT, max_credits=PRICE + 1)),
    ("credits", Wish()),
    ("credits", Wish(ServiceTier.DEFAULT)),
]


@pytest.mark.parametrize(("beyond", "wish"), SAID)
async def test_credits_pay_beyond_the_allowance_where_the_caller_or_the_tier_said_so(
    queue: JobQueue, ledger: RedisLedger, beyond: str, wish: Wish
) -> None:
    job = (await ask(queue, limits=limits_of(beyond), wish=wish)).job
    assert job is not None
    assert (job.service_class, job.paid_from, job.credits) == (ServiceClass.BURST, "credits", PRICE)
    assert await queue.get("video_1", user="ann") == job
    assert await figures(ledger) == (1000 - PRICE, PRICE)


@pytest.mark.parametrize(("beyond", "wish"), SAID)
async def test_inside_the_allowance_a_burst_class_costs_no_credits(
    queue: JobQueue, ledger: RedisLedger, beyond: str, wish: Wish
) -> None:
    job = (await ask(queue, limits=limits_of(beyond, 1, "burst"), wish=wish)).job
    assert job is not None
    assert (job.paid_from, job.credits) == ("allowance", 0)
    assert await figures(ledger) == (1000, 0)


async def test_a_buyer_skips_the_line_inside_the_allowance(
    queue: JobQueue, ledger: RedisLedger
) -> None:
    admission = await ask(queue, limits=limits_of("refuse", 5))
    assert admission.job is not None
    assert admission.job.service_class is ServiceClass.BURST
    assert admission.allowance.generations_used == 0
    assert await figures(ledger) == (1000 - PRICE, PRICE)


NOT_SAID = [
    ("refuse", Wish()),
    ("refuse", Wish(ServiceTier.FLEX, max_credits=9999)),
    ("credits", Wish(ServiceTier.FLEX)),
    ("relaxed", Wish(ServiceTier.DEFAULT)),
]


@pytest.mark.parametrize(("beyond", "wish"), NOT_SAID)
async def test_credits_are_not_used_where_nobody_said_so(
    queue: JobQueue, ledger: RedisLedger, beyond: str, wish: Wish
) -> None:
    with pytest.raises(InsufficientQuota) as refusal:
        await ask(queue, limits=limits_of(beyond), wish=wish)
    assert refusal.value.reason == "generations"
    assert await figures(ledger) == (1000, 0)


@pytest.mark.parametrize(
    ("wish", "price", "reason"),
    [
        (PRIORITY, 1001, "credits"),
        (Wish(max_credits=2000), 1001, "credits"),
        (Wish(max_credits=399), 400, "max_credits"),
        (Wish(ServiceTier.PRIORITY, max_credits=0), 1, "max_credits"),
    ],
)
async def test_no_more_is_used_than_there_is_or_than_was_said(
    queue: JobQueue, ledger: RedisLedger, wish: Wish, price: int, reason: str
) -> None:
    with pytest.raises(InsufficientCredits) as refusal:
        await ask(queue, wish=wish, price=price)
    assert (refusal.value.reason, refusal.value.price) == (reason, price)
    assert refusal.value.balance == min(1000, price)
    assert f"{price / 1000:g} credits" in refusal.value.message
    assert await figures(ledger) == (1000, 0)


async def test_auto_has_it_made_when_there_is_room_if_credits_do_not_pay(
    queue: JobQueue, ledger: RedisLedger
) -> None:
    job = (await ask(queue, limits=limits_of("relaxed"), wish=Wish(max_credits=1))).job
    assert job is not None
    assert (job.service_class, job.paid_from, job.credits) == ("relaxed", "relaxed", 0)
    assert await figures(ledger) == (1000, 0)


async def test_nothing_is_spent_while_something_is_owed(
    queue: JobQueue, ledger: RedisLedger
) -> None:
    await ask(queue)
    await ledger.reverse("pay_1", ref="chargeback_1")
    with pytest.raises(InsufficientCredits) as refusal:
        await ask(queue, "video_2")
    assert refusal.value.reason == "debt"


async def test_a_clip_without_a_price_holds_nothing(queue: JobQueue, ledger: RedisLedger) -> None:
    job = (await ask(queue, price=0, user="bob")).job
    assert job is not None
    assert (job.service_class, job.credits) == (ServiceClass.BURST, 0)
    assert await figures(ledger, "bob") == (0, 0)


async def test_the_same_submission_again_holds_nothing_more(
    queue: JobQueue, ledger: RedisLedger
) -> None:
    wish = Wish(ServiceTier.PRIORITY, body_sha256="b", idempotency_key="k")
    first = await ask(queue, wish=wish)
    assert (await ask(queue, wish=wish)).job == first.job
    assert (await ask(queue, "video_2", wish=wish)).replayed
    assert await figures(ledger) == (1000 - PRICE, PRICE)


@pytest.mark.parametrize("made", [False, True])
async def test_a_submission_whose_job_was_deleted_is_told_so_and_holds_nothing(
    queue: JobQueue, ledger: RedisLedger, leases: Leases, made: bool
) -> None:
    """A late repetition of a call whose answer was lost."""
    await ask(queue)
    if made:
        await leases.complete(await leased(leases), {"artifacts": {}})
    await queue.delete("video_1", user="ann")
    before = await figures(ledger)
    again = await ask(queue)
    assert (again.replayed, again.job) == (True, None)
    assert await figures(ledger) == before == ((600, 0) if made else (1000, 0))
    assert await queue.find("video_1") is None


async def test_what_would_become_of_it_is_said_without_a_hold(
    queue: JobQueue, ledger: RedisLedger
) -> None:
    job = (await ask(queue, dry=True)).job
    assert job is not None
    assert (job.paid_from, job.credits) == ("credits", PRICE)
    with pytest.raises(InsufficientCredits):
        await ask(queue, dry=True, price=1001)
    assert await figures(ledger) == (1000, 0)
    assert [entry.type for entry in await ledger.entries()] == [EntryType.GRANT]


async def test_credits_are_captured_once_the_clip_is_stored(
    queue: JobQueue, ledger: RedisLedger, leases: Leases
) -> None:
    await ask(queue)
    job = await leased(leases)
    assert job.credits == PRICE
    for _ in range(3):
        await leases.complete(job, {"artifacts": {}}, spent_ms=5)
    await queue.delete("video_1", user="ann")
    assert await figures(ledger) == (1000 - PRICE, 0)
    captures = [entry for entry in await ledger.entries() if entry.type is EntryType.CAPTURE]
    assert [(entry.of, entry.postings["cell:earned"]) for entry in captures] == [("video_1", PRICE)]


@pytest.mark.parametrize("how", ["fail", "cancel", "delete", "lost", "expired"])
async def test_credits_come_back_whatever_else_becomes_of_it(
    cell: Cell, ledger: RedisLedger, how: str
) -> None:
    settings = JobSettings(attempts_max=1, queue_ttl_s=1)
    queue, leases = JobQueue(cell, settings), Leases(cell, "demo-wan", "r1", settings)
    await ask(queue)
    upkeep = Upkeep(cell, settings)
    if how in ("fail", "lost"):
        job = await leased(leases)
    match how:
        case "fail":
            for _ in range(2):
                await leases.fail(job, ModelFailed("x"))
        case "cancel":
            await queue.cancel("video_1", user="ann")
        case "delete":
            await queue.delete("video_1", user="ann")
        case "lost":
            await cell.redis.zadd(cell.key("leased", "demo-wan"), {"video_1": 1})
            await upkeep.tidy()
        case "expired":
            await cell.redis.hset(cell.key("job", "video_1"), "created_ms", 1)
            await upkeep.tidy()
    await upkeep.tidy()
    found = await queue.find("video_1")
    if how != "delete":
        assert found is not None
        assert found.state in (State.FAILED, State.CANCELLED, State.EXPIRED)
        assert (found.paid_from, found.credits) == ("credits", 0)
    assert await figures(ledger) == (1000, 0)
    kinds = [EntryType.GRANT, EntryType.HOLD, EntryType.RELEASE]
    assert [entry.type for entry in await ledger.entries()] == kinds


async def test_a_job_that_yields_stays_paid_for(
    queue: JobQueue, ledger: RedisLedger, leases: Leases
) -> None:
    await ask(queue)
    await leases.give_back(await leased(leases))
    assert await figures(ledger) == (1000 - PRICE, PRICE)
    await leases.complete(await leased(leases), {"artifacts": {}})
    assert await figures(ledger) == (1000 - PRICE, 0)
