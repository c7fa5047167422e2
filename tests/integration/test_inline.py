"""Work that is heard while it is made: admitted and leased in one step, paid for what was heard."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from quota.ledger import EntryType, Kind
from quota.redis_ledger import RedisLedger
from quota.tiers import Tier, Tiers
from quota.verify import verify
from serving.jobs import (
    Cell,
    InlineLease,
    InlineLeases,
    JobQueue,
    JobSettings,
    Leases,
    Limits,
    State,
    Upkeep,
    Wish,
    compare_holds,
)
from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.errors import (
    InsufficientCredits,
    InsufficientQuota,
    ModelFailed,
    NotFound,
    QueueFull,
    StaleLease,
    TooManyStreams,
)
from tests.jobs import LEASE_MS, leased, submit, until
from tests.queue_state import check, check_nothing_left, read_state

pytestmark = pytest.mark.asyncio

POOL = "voice"
PRICE, GRANTED = 1000, 5000
DAY = Limits(generations=3, gpu_ms=10_000, days_ms=[0, 10**14])
NONE_LEFT = Limits(generations=0, beyond="refuse", days_ms=[0, 10**14])
PAYS = Wish(ServiceTier.PRIORITY)
_ids = (f"audio_{n}" for n in itertools.count())


@pytest.fixture
def bounds() -> JobSettings:
    return JobSettings(inline_max=10, inline_own=3, lease_s_min=0.5, inline_retention_s=1)


@pytest.fixture
def inline(cell: Cell, bounds: JobSettings) -> InlineLeases:
    return InlineLeases(cell, "i1", bounds)


async def grant(inline: InlineLeases, **changes: Any) -> InlineLease:
    return await inline.grant(
        **{
            "job_id": next(_ids),
            "user": "ann",
            "pool": POOL,
            "alias": "tts-1",
            "asked": {"input": "hello"},
            "est_device_ms": 1000,
            "price": PRICE,
            "limits": DAY,
            "wish": Wish(),
            **changes,
        }
    )


async def paid(cell: Cell) -> tuple[list[EntryType], tuple[int, int]]:
    """What was written, and what may be spent and is held."""
    assert (await verify(cell)).differences == []
    assert await compare_holds(cell) == []
    ledger = RedisLedger(cell)
    has = await ledger.balance("ann")
    return [entry.type for entry in await ledger.entries()], (has.spendable, has.held)


@pytest_asyncio.fixture
async def bought(cell: Cell) -> None:
    await RedisLedger(cell).grant("ann", ref="pay", amount=GRANTED, kind=Kind.PURCHASE)


async def state_of(redis: Redis, lease: InlineLease) -> dict[str, str]:
    state = await read_state(redis)
    check(state)
    return state.jobs[lease.id]


async def test_it_does_not_wait(redis: Redis, inline: InlineLeases) -> None:
    lease = await grant(inline)
    job = await state_of(redis, lease)
    assert (job["state"], job["replica"], int(job["fence"])) == ("in_progress", "i1", lease.fence)
    assert (lease.service_class, lease.paid_from, lease.credits) == (
        ServiceClass.STANDARD,
        "allowance",
        0,
    )
    assert lease.allowance.generations_used == 1
    await inline.renew(lease, spent_ms=10, step=1, remaining_ms=100)
    await inline.complete(lease, {"seconds": 2.0}, spent_ms=20)
    job = await state_of(redis, lease)
    assert (job["state"], job["spent_ms"]) == ("completed", "20")
    # Again, as after a lost answer.
    await inline.complete(lease, {"seconds": 2.0}, spent_ms=20)
    with pytest.raises(StaleLease):
        await inline.renew(lease, spent_ms=10, step=1, remaining_ms=100)


async def test_it_counts_against_the_day_as_a_clip_does(
    redis: Redis, inline: InlineLeases, queue: JobQueue
) -> None:
    await submit(queue, limits=DAY)
    lease = await grant(inline)
    assert lease.allowance.generations_used == 2
    await inline.complete(lease, {}, spent_ms=400)
    third = await grant(inline)
    assert (third.allowance.generations_used, third.allowance.gpu_ms_used) == (3, 2400)
    with pytest.raises(InsufficientQuota):
        await grant(inline, limits=Limits(**{**DAY.__dict__, "beyond": "refuse"}))
    # What we failed to make does not count.
    await inline.fail(third, ModelFailed("x"), spent_ms=100)
    assert (await grant(inline)).allowance.generations_used == 3
    check(await read_state(redis))


@pytest.mark.usefixtures("bought")
async def test_all_of_it_is_paid_when_all_was_heard(cell: Cell, inline: InlineLeases) -> None:
    lease = await grant(inline, limits=NONE_LEFT, wish=PAYS)
    assert (lease.paid_from, lease.credits, lease.service_class) == (
        "credits",
        PRICE,
        ServiceClass.BURST,
    )
    assert await paid(cell) == (
        [EntryType.GRANT, EntryType.HOLD],
        (GRANTED - PRICE, PRICE),
    )
    await inline.complete(lease, {}, spent_ms=10)
    assert await paid(cell) == (
        [EntryType.GRANT, EntryType.HOLD, EntryType.CAPTURE],
        (GRANTED - PRICE, 0),
    )


@pytest.mark.usefixtures("bought")
@pytest.mark.parametrize(("made", "costs"), [(0.25, 250), (0.0, 0), (0.0004, 0), (1.0, PRICE)])
async def test_who_leaves_pays_for_what_was_made(
    redis: Redis, cell: Cell, inline: InlineLeases, made: float, costs: int
) -> None:
    lease = await grant(inline, limits=NONE_LEFT, wish=PAYS)
    await inline.left(lease, made=made, spent_ms=10)
    await inline.left(lease, made=made, spent_ms=10)
    job = await state_of(redis, lease)
    assert (job["state"], job["credits"]) == ("cancelled", str(costs))
    written, has = await paid(cell)
    assert written[2:] == [EntryType.CAPTURE if costs else EntryType.RELEASE]
    assert has == (GRANTED - costs, 0)


@pytest.mark.usefixtures("bought")
async def test_what_cannot_be_made_costs_nothing(
    redis: Redis, cell: Cell, inline: InlineLeases
) -> None:
    lease = await grant(inline, limits=NONE_LEFT, wish=PAYS)
    await inline.fail(lease, ModelFailed("It raised."), spent_ms=10)
    job = await state_of(redis, lease)
    assert (job["state"], job["credits"]) == ("failed", "0")
    assert "It raised." in job["error"]
    assert (await paid(cell))[1] == (GRANTED, 0)


@pytest.mark.usefixtures("bought")
async def test_an_ingress_that_dies_lets_it_lapse_and_it_is_not_tried_again(
    redis: Redis, cell: Cell, inline: InlineLeases, upkeep: Upkeep
) -> None:
    lease = await grant(inline, limits=NONE_LEFT, wish=PAYS)

    async def failed() -> bool:
        await upkeep.tidy()
        return (await state_of(redis, lease))["state"] == "failed"

    await until(failed)
    assert (await paid(cell))[1] == (GRANTED, 0)
    with pytest.raises(StaleLease):
        await inline.complete(lease, {}, spent_ms=10)
    assert (await read_state(redis)).zsets.get(f"queued:{POOL}") is None


async def test_who_gets_on_keeps_it(redis: Redis, inline: InlineLeases, upkeep: Upkeep) -> None:
    lease = await grant(inline)
    for step in range(1, 8):
        await asyncio.sleep(0.2)
        await inline.renew(lease, spent_ms=step, step=step, remaining_ms=10)
        await upkeep.tidy()
    assert (await state_of(redis, lease))["state"] == "in_progress"


async def test_a_stack_that_starts_takes_it_back(
    redis: Redis, inline: InlineLeases, upkeep: Upkeep
) -> None:
    lease = await grant(inline)
    assert await upkeep.recover() == 1
    assert (await state_of(redis, lease))["state"] == "failed"


async def test_a_user_has_so_many_at_once_and_a_model_too(
    redis: Redis, inline: InlineLeases
) -> None:
    mine = [await grant(inline, limits=Limits()) for _ in range(3)]
    with pytest.raises(TooManyStreams, match="3 clips") as raised:
        await grant(inline, limits=Limits())
    assert (raised.value.code, raised.value.status) == ("too_many_streams", 429)
    for n in range(6):
        await grant(inline, user=f"user{n}", limits=Limits())
    # The last of ten is for a higher class.
    with pytest.raises(QueueFull):
        await grant(inline, user="late", limits=Limits())
    await inline.complete(mine[0], {}, spent_ms=1)
    await grant(inline, limits=Limits())
    state = await read_state(redis)
    check(state)
    assert state.hashes[f"refused:{POOL}"] == {"streams": "1", "pool": "1"}


async def test_it_does_not_take_the_place_of_its_users_clips(
    redis: Redis, queue: JobQueue, inline: InlineLeases, leases: Leases
) -> None:
    """Nor wait for them: a user who may run one job listens, and their clip runs."""
    await queue.apply_tiers(Tiers(default_tier="one", tiers={"one": Tier(running_jobs=1)}))
    await grant(inline)
    clip = await submit(queue)
    assert (await leased(leases, LEASE_MS)).id == clip.id
    await grant(inline)
    usage = await queue.usage("ann", DAY)
    assert (usage.running, usage.queued) == (1, 0)
    check(await read_state(redis))


async def test_a_refused_one_leaves_nothing(redis: Redis, inline: InlineLeases) -> None:
    with pytest.raises(InsufficientCredits):
        await grant(inline, limits=NONE_LEFT, wish=PAYS)
    state = await read_state(redis)
    check(state)
    assert state.jobs == {}
    assert state.hashes[f"refused:{POOL}"] == {"credits": "1"}


async def test_the_same_id_has_the_same_lease(redis: Redis, inline: InlineLeases) -> None:
    first = await grant(inline, job_id="audio_same")
    again = await grant(inline, job_id="audio_same")
    assert (again.fence, again.created_ms, again.credits) == (
        first.fence,
        first.created_ms,
        first.credits,
    )
    assert (await read_state(redis)).hashes["used:ann"]["generations"] == "1"


async def test_it_is_in_no_list_and_nobody_elses_to_end(
    queue: JobQueue, inline: InlineLeases
) -> None:
    lease = await grant(inline)
    assert (await queue.list("ann", limit=10)).jobs == []
    for ask in (queue.get, queue.cancel, queue.delete):
        with pytest.raises(NotFound):
            await ask(lease.id, user="ann")
    await inline.complete(lease, {}, spent_ms=1)


async def test_it_is_counted_as_a_clip_is(queue: JobQueue, inline: InlineLeases) -> None:
    lease = await grant(inline)
    pool = (await queue.pools([POOL]))[POOL]
    assert pool.in_progress == 1
    await inline.renew(lease, spent_ms=5, step=1, remaining_ms=5)
    await inline.complete(lease, {}, spent_ms=10)
    pool = (await queue.pools([POOL]))[POOL]
    assert (pool.in_progress, pool.ended[State.COMPLETED]) == (0, 1)
    assert pool.times[ServiceClass.STANDARD, "first_step"].count == 1
    assert pool.backlog[ServiceClass.STANDARD].arrived_jobs == 1


async def test_when_it_is_forgotten_nothing_is_left(
    redis: Redis, inline: InlineLeases, upkeep: Upkeep
) -> None:
    await inline.complete(await grant(inline), {}, spent_ms=10)
    await inline.left(await grant(inline), made=0.5, spent_ms=10)

    async def forgotten() -> bool:
        await upkeep.tidy()
        return not (await read_state(redis)).jobs

    await until(forgotten)
    check_nothing_left(await read_state(redis))
    assert await upkeep.garbage(10) == []
