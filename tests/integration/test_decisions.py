"""The autoscaler's decisions in Redis: the last of each pool, and a history of all."""

from __future__ import annotations

import pytest

from autoscale.values import Demand
from serving.jobs import Cell, Decisions
from serving.jobs import decisions as room
from tests.decisions import decision

pytestmark = pytest.mark.asyncio


@pytest.fixture
def decisions(cell: Cell) -> Decisions:
    return Decisions(cell)


async def test_before_the_first_decision_there_is_nothing(decisions: Decisions) -> None:
    assert await decisions.last() == {}
    assert await decisions.history() == []


async def test_a_decision_is_read_as_it_was_written_with_redis_s_time(
    decisions: Decisions, cell: Cell
) -> None:
    written = decision(retry_in_s=2.5)
    await decisions.write({"demo-wan": written})
    (found,) = (await decisions.last()).values()
    assert abs(found.at_ms - 1000 * (await cell.redis.time())[0]) < 60_000
    assert 0 <= found.age_s < 60
    assert found.sample is not None
    read = found.model_dump(exclude={"at_ms", "age_s"})
    # Nothing of what explains a decision is lost on the way.
    del written["pool"], written["sample"]["at_s"]
    assert read == written


async def test_a_decision_made_without_ever_a_sample_is_read(decisions: Decisions) -> None:
    held = decision(sample=None, sample_age_s=None, bound="hold", demand=Demand())
    await decisions.write({"demo-wan": held})
    found = (await decisions.last())["demo-wan"]
    assert (found.sample, found.sample_age_s, found.bound) == (None, None, "hold")


async def test_the_last_decision_counts_and_ages(decisions: Decisions) -> None:
    await decisions.write({"a": decision("a", target=2)})
    first = (await decisions.last())["a"]
    await decisions.write({"a": decision("a", target=3)})
    assert (await decisions.last())["a"].target == 3
    newest, before = await decisions.history()
    assert (newest.pools["a"].target, before.pools["a"].target) == (3, 2)
    assert before.at_ms == first.at_ms <= newest.at_ms
    assert newest.age_s <= before.age_s


async def test_a_pool_that_is_not_decided_any_more_is_forgotten(decisions: Decisions) -> None:
    await decisions.write({"b": decision("b"), "a": decision("a")})
    assert list(await decisions.last()) == ["a", "b"]
    await decisions.write({"b": decision("b")})
    assert list(await decisions.last()) == ["b"]
    await decisions.write({})
    assert await decisions.last() == {}
    assert [sorted(line.pools) for line in await decisions.history()] == [[], ["b"], ["a", "b"]]


async def test_the_history_says_what_there_was_to_do(decisions: Decisions) -> None:
    await decisions.write({"demo-wan": decision()})
    # Who holds has no demand, but what was seen last is still there.
    await decisions.write({"demo-wan": decision(bound="hold", demand=Demand())})
    held, decided = (line.pools["demo-wan"] for line in await decisions.history())
    assert (decided.work_s, decided.jobs, decided.load) == (132.5, 8, 2.4)
    assert (decided.target, decided.ready, decided.wanted, decided.bound) == (4, 1, 4, "need")
    assert (held.work_s, held.jobs, held.bound) == (132.5, 8, "hold")


async def test_the_history_is_bounded(
    decisions: Decisions, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "HISTORY_MAX", 3)
    for target in range(5):
        await decisions.write({"a": decision("a", target=target)})
    assert await cell.redis.llen(cell.key("autoscale", "history")) == 3
    assert [line.pools["a"].target for line in await decisions.history()] == [4, 3, 2]
    assert [line.pools["a"].target for line in await decisions.history(2)] == [4, 3]


async def test_what_another_version_wrote_does_not_hide_the_rest(
    decisions: Decisions, cell: Cell
) -> None:
    await decisions.write({"a": {**decision("a"), "mood": "good"}, "b": decision("b")})
    await cell.redis.hset(cell.key("autoscale"), "b", '{"at_ms": 1, "size": "large"}')
    assert list(await decisions.last()) == ["a"]
    await cell.redis.lpush(cell.key("autoscale", "history"), '{"v": 2}')
    assert len(await decisions.history()) == 1
