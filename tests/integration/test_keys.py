"""Users and keys in a real Redis: who a key speaks for, and what a dead client leaves behind."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.stack import local_key
from serving.api.accounts import Accounts
from serving.api.keys import DEFAULT_SCOPES, Caller, Keys, Scope, digest
from serving.api.users import UserInfo, Users
from serving.jobs import CELL
from serving.plan.errors import InvalidRequest, NotFound, ServiceUnavailable
from tests.dying import dying_after

pytestmark = pytest.mark.asyncio

DAY_S = 24 * 3600
WALKS = 10
OPERATIONS = 40


@pytest.fixture
def keys(redis: Redis) -> Keys:
    return Keys(redis, CELL)


@pytest.fixture
def users(redis: Redis) -> Users:
    return Users(redis, CELL, lambda: ["free", "pro"])


async def refused(keys: Keys, key: str) -> bool:
    return not await keys.knows(key)


async def grace_ends(redis: Redis, key_id: str) -> None:
    """What the passing of a day comes to, without waiting for it."""
    await redis.hincrby(f"{CELL}:apikey:{key_id}", "previous_until_ms", -DAY_S * 1000)


# Who is calling.


async def test_a_key_has_its_user_their_tier_and_its_scopes(keys: Keys, users: Users) -> None:
    info, key = await keys.create("ann", {Scope.READ, Scope.ADMIN})

    assert info.scopes == [Scope.READ, Scope.ADMIN]
    scopes = frozenset(info.scopes)
    assert await keys.caller(key) == Caller("ann", None, scopes, info.id)
    await users.set_tier("ann", "pro")
    assert await keys.caller(key) == Caller("ann", "pro", scopes, info.id)
    await users.set_tier("ann", None)
    assert (await keys.caller(key)).tier is None


async def test_an_end_users_tier_is_their_own(keys: Keys, users: Users) -> None:
    _, key = await keys.create("shop", {*DEFAULT_SCOPES, Scope.ACT_AS}, tier="pro")
    assert (await users.get("shop")).tier == "pro"

    ann = await keys.caller(key, "ann")

    assert (ann.user, ann.tier) == ("shop/ann", None)
    await users.set_tier("shop/ann", "free")
    assert (await keys.caller(key, "ann")).tier == "free"
    assert (await keys.caller(key, "bob")).tier is None


async def test_a_caller_is_known_in_one_round_trip(
    keys: Keys, users: Users, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key = await keys.create("shop", {*DEFAULT_SCOPES, Scope.ACT_AS})
    await users.set_tier("shop/ann", "pro")
    await keys.caller(key)  # loads the script
    sent = []
    execute: Any = redis.execute_command

    async def counting(*args: Any, **options: Any) -> Any:
        sent.append(args[0])
        return await execute(*args, **options)

    monkeypatch.setattr(redis, "execute_command", counting)

    assert (await keys.caller(key, "ann")).tier == "pro"
    assert sent == ["EVALSHA"]


async def test_a_key_from_before_there_were_scopes_generates_and_reads(
    keys: Keys, redis: Redis
) -> None:
    record = ("user", "ann", "sha256", digest("c" * 40), "created_at", 1_790_000_000)
    await redis.hset(f"{CELL}:apikey:0123456789ab", items=list(record))
    await redis.sadd(f"{CELL}:apikeys", "0123456789ab")

    caller = await keys.caller("rsk_0123456789ab_" + "c" * 40)

    assert caller == Caller("ann", None, DEFAULT_SCOPES, "0123456789ab")
    (listed,) = await keys.list()
    assert listed.scopes == [Scope.GENERATE, Scope.READ]
    _, key = await keys.rotate("0123456789ab")
    assert (await keys.caller(key)).scopes == DEFAULT_SCOPES


@pytest.mark.parametrize(
    "scopes", [[], [Scope.ACT_AS], [Scope.ACT_AS, Scope.ADMIN]], ids=["none", "act-as", "no work"]
)
async def test_scopes_that_allow_nothing_are_refused(keys: Keys, scopes: list[Scope]) -> None:
    with pytest.raises(InvalidRequest, match="scopes"):
        await keys.create("ann", scopes)
    assert await keys.list() == []


async def test_the_stored_admin_key_works_until_one_is_configured(redis: Redis) -> None:
    stored = Keys(redis, CELL)
    assert await refused(stored, "")
    key = await stored.make_admin_key()
    assert key is not None
    assert await stored.make_admin_key() is None
    assert (await stored.caller(key)).scopes == {Scope.ADMIN}
    assert await refused(stored, "")
    configured = Keys(redis, CELL, SecretStr("the-admin-key"))
    assert await refused(configured, key)
    assert (await configured.caller("the-admin-key")).scopes == {Scope.ADMIN}


async def test_nothing_stored_is_a_secret(keys: Keys, redis: Redis) -> None:
    info, first = await keys.create("ann")
    _, second = await keys.rotate(info.id)
    await keys.make_admin_key()

    stored = str([await redis.hgetall(name) for name in await redis.keys(f"{CELL}:apikey:*")])

    assert digest(first.split("_")[2]) in stored
    assert first.split("_")[2] not in stored
    assert second.split("_")[2] not in stored


# Rotating.


async def test_both_secrets_work_until_the_grace_ends(keys: Keys, redis: Redis) -> None:
    info, old = await keys.create("ann", {Scope.READ})

    rotated, new = await keys.rotate(info.id)

    assert (rotated.id, rotated.user, rotated.scopes) == (info.id, "ann", [Scope.READ])
    seconds, _ = await redis.time()
    assert rotated.previous_works_until is not None
    assert rotated.previous_works_until - seconds == pytest.approx(DAY_S, abs=60)
    assert await keys.caller(old) == await keys.caller(new)
    await grace_ends(redis, info.id)
    assert await refused(keys, old)
    assert await keys.knows(new)


async def test_without_a_grace_the_old_secret_has_ended(keys: Keys) -> None:
    info, old = await keys.create("ann")
    _, new = await keys.rotate(info.id, grace_s=0)
    assert await refused(keys, old)
    assert await keys.knows(new)


async def test_rotated_twice_only_the_secret_before_works_on(keys: Keys) -> None:
    info, first = await keys.create("ann")
    _, second = await keys.rotate(info.id)
    assert await keys.knows(second)

    _, third = await keys.rotate(info.id)

    assert await refused(keys, first)
    assert await keys.knows(second)
    assert await keys.knows(third)


async def test_a_rotation_whose_answer_was_lost_locks_nobody_out(keys: Keys) -> None:
    info, in_use = await keys.create("ann")
    _, lost = await keys.rotate(info.id)

    for _ in range(3):
        _, new = await keys.rotate(info.id)

    assert await keys.knows(in_use)
    assert await keys.knows(new)
    assert await refused(keys, lost)


async def test_a_secret_whose_grace_is_over_does_not_come_back(keys: Keys, redis: Redis) -> None:
    info, first = await keys.create("ann")
    _, second = await keys.rotate(info.id)  # nobody calls with it
    await grace_ends(redis, info.id)

    _, third = await keys.rotate(info.id)

    assert await refused(keys, first)
    assert await keys.knows(second)
    assert await keys.knows(third)


@pytest.mark.parametrize("seed", range(WALKS))
async def test_however_a_key_is_rotated_the_secret_in_use_works(
    keys: Keys, redis: Redis, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    info, first = await keys.create("ann")
    issued, in_use = [first], 0  # the newest that anybody has called with, or that had to do
    for _ in range(OPERATIONS):
        match chance.choice(["rotate", "rotate", "rotate", "call", "call", "day", "at once"]):
            case "rotate":
                issued.append((await keys.rotate(info.id))[1])
            case "call":
                called = chance.randrange(len(issued))
                if await keys.knows(issued[called]):
                    in_use = max(in_use, called)
                else:
                    assert called < len(issued) - 1
            case "day" if len(issued) > 1:
                await grace_ends(redis, info.id)
                in_use = len(issued) - 1
            case "at once":
                issued.append((await keys.rotate(info.id, grace_s=0))[1])
                in_use = len(issued) - 1
        # The newest is left alone here: to call with it changes what the next rotation does.
        older = [number for number, key in enumerate(issued[:-1]) if await keys.knows(key)]
        assert len(older) <= 1
        assert in_use == len(issued) - 1 or older == [in_use]


async def test_a_command_that_the_client_repeats_rotates_once(keys: Keys, redis: Redis) -> None:
    info, old = await keys.create("ann")
    accounts = Accounts(redis, CELL)
    sha256 = digest("d" * 40)
    new = f"rsk_{info.id}_" + "d" * 40

    once = await accounts.run("rotate_key", info.id, sha256, DAY_S * 1000)
    assert await keys.knows(new)
    again = await accounts.run("rotate_key", info.id, sha256, DAY_S * 1000)

    assert set(again) == set(once) - {"unused", "1"}
    assert await keys.knows(old)
    assert await keys.knows(new)


async def test_revoking_ends_both_secrets(keys: Keys) -> None:
    info, old = await keys.create("ann")
    _, new = await keys.rotate(info.id)
    await keys.revoke(info.id)
    assert await refused(keys, old)
    assert await refused(keys, new)
    for again in (keys.revoke(info.id), keys.rotate(info.id)):
        with pytest.raises(NotFound):
            await again
    assert await keys.list() == []


async def test_a_redis_that_cannot_write_lets_a_new_secret_in(keys: Keys, redis: Redis) -> None:
    info, _ = await keys.create("ann")
    _, new = await keys.rotate(info.id)
    await redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(ServiceUnavailable):
            await keys.rotate(info.id)
        assert await keys.knows(new)
    finally:
        await redis.config_set("min-replicas-to-write", 0)


# Users.


async def test_a_key_makes_its_user_and_keeps_the_tier_they_have(keys: Keys, users: Users) -> None:
    await keys.create("ann", tier="pro")
    made = await users.get("ann")
    await keys.create("ann")
    assert await users.get("ann") == made
    assert (made.id, made.tier) == ("ann", "pro")


async def test_who_is_introduced_twice_keeps_what_was_set(users: Users) -> None:
    assert (await users.introduce("local", "unlimited")).tier == "unlimited"
    assert (await users.introduce("local", "free")).tier == "unlimited"
    await users.set_tier("local", None)
    assert (await users.introduce("local", "unlimited")).tier is None


async def test_who_starts_a_stack_has_a_key_without_limits(keys: Keys, users: Users) -> None:
    key = await local_key(users, keys, "")

    caller = await keys.caller(key)
    assert (caller.user, caller.tier, caller.scopes) == ("local", "unlimited", DEFAULT_SCOPES)
    await users.set_tier("local", "free")
    assert await local_key(users, keys, key) == key
    await keys.revoke(caller.key_id)
    another = await keys.caller(await local_key(users, keys, key))
    assert (another.user, another.tier) == ("local", "free")


async def test_end_users_are_listed_only_once_something_is_set(keys: Keys, users: Users) -> None:
    _, key = await keys.create("shop", {*DEFAULT_SCOPES, Scope.ACT_AS})
    await keys.caller(key, "ann")
    assert [user.id for user in (await users.list(limit=10)).users] == ["shop"]
    with pytest.raises(NotFound):
        await users.get("shop/ann")
    await users.set_tier("shop/ann", "pro")
    assert [user.id for user in (await users.list(limit=10)).users] == ["shop", "shop/ann"]


async def test_pages_of_users_miss_nobody_though_the_clock_goes_back(
    users: Users, redis: Redis
) -> None:
    made = [(await users.introduce(name)).id for name in ("zoe", "yan")]
    first = await users.list(limit=2)
    # An hour in which the clock was ahead: by it, those were made later than who comes now.
    for name in made:
        await redis.zincrby(f"{CELL}:users", 3_600_000, name)
    made += [(await users.introduce(f"{letter}xx")).id for letter in "cab"]

    seen: list[UserInfo] = first.users
    while (page := await users.list(limit=2, after=seen[-1].id)).users:
        seen += page.users

    assert (first.has_more, page.has_more) == (False, False)
    assert [user.id for user in seen] == made
    with pytest.raises(InvalidRequest) as error:
        await users.list(limit=2, after="nobody")
    assert error.value.param == "after"


@pytest.mark.parametrize("name", ["", "/", "ann/", "/ann", "a/b/c", "a b", "ann:jobs", "ann\n"])
async def test_what_is_no_name_names_nobody(keys: Keys, users: Users, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await users.set_tier(name, "pro")
    with pytest.raises(NotFound):
        await users.get(name)
    with pytest.raises(InvalidRequest):
        await keys.create(name)


async def test_a_tier_that_there_is_not_is_refused_with_those_there_are(users: Users) -> None:
    with pytest.raises(InvalidRequest, match=r"'gold'.*free, pro") as error:
        await users.set_tier("ann", "gold")
    assert (error.value.code, error.value.param) == ("unknown_tier", "tier")
    assert (await users.list(limit=10)).users == []


# Dying half way.


async def names(redis: Redis, pattern: str) -> set[str]:
    return {str(name) for name in await redis.keys(f"{CELL}:{pattern}")}


async def whole(redis: Redis, keys: Keys, users: Users) -> None:
    """Every key is listed and has a record, with a user who is listed and has one; no more."""
    listed, people = await keys.list(), (await users.list(limit=100)).users
    assert await redis.scard(f"{CELL}:apikeys") == len(listed)
    assert {f"{CELL}:apikey:{info.id}" for info in listed} == await names(redis, "apikey:*")
    assert await redis.zcard(f"{CELL}:users") == len(people)
    assert {f"{CELL}:user:{user.id}" for user in people} == await names(redis, "user:*")
    assert {info.user for info in listed} <= {user.id for user in people}
    for info in listed:
        record = await redis.hgetall(f"{CELL}:apikey:{info.id}")
        assert {"user", "scopes", "sha256", "created_at"} <= record.keys()
        assert ("previous_sha256" in record) == ("previous_until_ms" in record)


PATHS: dict[str, Callable[[Keys, Users, str], Awaitable[object]]] = {
    "create": lambda keys, users, key_id: keys.create("bob", tier="pro"),
    "rotate": lambda keys, users, key_id: keys.rotate(key_id),
    "revoke": lambda keys, users, key_id: keys.revoke(key_id),
    "introduce": lambda keys, users, key_id: users.introduce("bob", "pro"),
    "set a tier": lambda keys, users, key_id: users.set_tier("bob", "pro"),
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_dies_after_any_command_leaves_nothing_half_done(
    redis: Redis, redis_server: RedisServer, keys: Keys, users: Users, path: str
) -> None:
    commands = 1
    while True:
        await redis.flushall()
        info, in_use = await keys.create("ann")
        await redis.script_flush()
        try:
            async with dying_after(redis_server, commands) as dying:
                await PATHS[path](Keys(dying.redis, CELL), Users(dying.redis, CELL), info.id)
        except ServiceUnavailable:
            commands += 1
        else:
            break
        await whole(redis, keys, users)
        assert path == "revoke" or await keys.knows(in_use)
    assert commands > 3
    await whole(redis, keys, users)


async def test_scripts_that_redis_forgot_are_loaded_again(
    keys: Keys, users: Users, redis: Redis
) -> None:
    info, key = await keys.create("ann")
    await redis.script_flush()
    assert (await keys.caller(key)).key_id == info.id
