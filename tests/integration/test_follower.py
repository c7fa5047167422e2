"""The audit copy: every entry in order and once, whatever kills the follower; and it says what it
does not take."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from deployments.audit import Follower
from deployments.cli.main import app
from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from deployments.stack import LocalStack
from quota.follower import AuditCopy
from quota.ledger import Entry, Kind
from quota.pages import Page, from_object, read_page
from quota.redis_ledger import RedisLedger
from quota.sqlite_ledger import SqliteLedger
from serving.jobs import Cell
from serving.plan.errors import ConfigError, LedgerRefused
from tests.api import ADMIN, running_ingress
from tests.busy_cell import BusyCell
from tests.jobs import until

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def ledger(redis: Redis) -> RedisLedger:
    """Of a cell that did a little of everything."""
    busy = BusyCell(redis)
    await busy.begin()
    return busy.ledger


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[AuditCopy]:
    copy = AuditCopy(tmp_path / "copy.sqlite")
    yield copy
    copy.close()


async def follow(ledger: RedisLedger, copy: AuditCopy, limit: int = 1000) -> int:
    last = copy.last
    return copy.append(last, await read_page(ledger.cell, last.id if last else None, limit))


async def test_entries_are_copied_in_order_with_their_ids(
    ledger: RedisLedger, copy: AuditCopy
) -> None:
    entries = await ledger.entries()
    while await follow(ledger, copy, limit=3):
        assert copy.last in entries
    assert await copy.entries() == entries
    assert await copy.balance("ann") == await ledger.balance("ann")
    assert await follow(ledger, copy) == 0
    await ledger.grant("ann", ref="late", amount=5, kind=Kind.PURCHASE)
    assert await follow(ledger, copy) == 1
    assert await copy.balance("ann") == await ledger.balance("ann")


async def test_two_followers_of_one_file_copy_each_entry_once(
    ledger: RedisLedger, copy: AuditCopy, tmp_path: Path
) -> None:
    other = AuditCopy(tmp_path / "copy.sqlite")
    page = await read_page(ledger.cell, None, 4)
    assert (copy.append(None, page), other.append(None, page)) == (4, 0)
    assert await follow(ledger, other) > 0
    assert await copy.entries() == await ledger.entries()
    other.close()


async def test_killed_anywhere_it_goes_on(
    ledger: RedisLedger, redis_server: RedisServer, tmp_path: Path
) -> None:
    program = (
        "import asyncio, os, pathlib, sys\n"
        "from redis.asyncio import Redis\n"
        "from quota.follower import AuditCopy\n"
        "from quota.pages import read_page\n"
        "from serving.jobs import Cell\n"
        "url, file, most = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])\n"
        "copy, posted, post = AuditCopy(file), 0, AuditCopy.post\n"
        "def dying(self, *args, **fields):\n"
        "    global posted\n"
        "    posted += 1\n"
        "    if posted > most:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return post(self, *args, **fields)\n"
        "AuditCopy.post = dying\n"
        "async def main():\n"
        "    cell, last = Cell(Redis.from_url(url, decode_responses=True)), copy.last\n"
        "    while copy.append(last, await read_page(cell, last.id if last else None, 2)):\n"
        "        last = copy.last\n"
        "asyncio.run(main())\n"
    )
    file, counts = tmp_path / "copy.sqlite", []
    entries = await ledger.entries()
    for most in (0, 1, 2, 3, 4):
        words = ["-c", program, redis_server.url, str(file), str(most)]
        process = await asyncio.create_subprocess_exec(sys.executable, *words)
        assert await process.wait() == -signal.SIGKILL
        copy = AuditCopy(file)
        assert await copy.entries() == entries[: copy.count()]
        counts.append(copy.count())
        copy.close()
    assert counts == [0, 0, 2, 4, 8]
    copy = AuditCopy(file)
    while await follow(ledger, copy):
        pass
    assert await copy.entries() == entries
    copy.close()


def at(page: Page, number: int, **changes: object) -> Page:
    """The page with another entry in one place."""
    entries = list(page.entries)
    fields = {**entries[number].__dict__, **changes}
    entries[number] = Entry(**fields)
    return Page(page.at, entries, page.archived)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"postings": {"cell:issued": -5, "grant:gift_1": 6}}, "do not add up"),
        ({"postings": {"cell:issued": -5, "gift_1": 5}}, "CHECK"),
        ({"postings": {}}, "do not add up"),
        ({"ref": "pay_1"}, "UNIQUE"),
        ({"id": "1-1"}, "does not come after"),
        ({"ref": ""}, "CHECK"),
        ({"at_ms": 2**70}, "too large"),
    ],
)
async def test_an_entry_that_no_ledger_may_have_is_refused_and_named(
    ledger: RedisLedger, copy: AuditCopy, changes: dict[str, object], why: str
) -> None:
    page = await read_page(ledger.cell, None)
    wrong = at(page, 1, **changes)
    with pytest.raises(LedgerRefused, match=why) as refused:
        copy.append(None, wrong)
    assert refused.value.code == "entry_refused"
    assert wrong.entries[1].id in refused.value.message
    assert await copy.entries() == page.entries[:1]
    assert await follow(ledger, copy) == len(page.entries) - 1


async def test_spending_what_is_not_there_is_refused(ledger: RedisLedger, copy: AuditCopy) -> None:
    page = await read_page(ledger.cell, None)
    held = next(n for n, entry in enumerate(page.entries) if entry.type == "hold")
    job = page.entries[held].of
    postings = {f"hold:{job}": 1001, "grant:pay_1": -1001}
    with pytest.raises(LedgerRefused, match="CHECK"):
        copy.append(None, at(page, held, postings=postings))
    assert copy.count() == held


async def test_another_ledger_or_one_that_lost_entries_is_not_followed(
    ledger: RedisLedger, copy: AuditCopy
) -> None:
    await follow(ledger, copy)
    entries = await copy.entries()
    stream, last = ledger.cell.key("ledger"), entries[-1]
    fields = (await ledger.cell.redis.xrange(stream, last.id, last.id))[0][1]
    await ledger.cell.redis.xdel(stream, last.id)
    await ledger.grant("ann", ref="after", amount=1, kind=Kind.PURCHASE)
    with pytest.raises(LedgerRefused, match=f"lost entry {last.id}") as refused:
        await follow(ledger, copy)
    assert refused.value.code == "source_differs"
    await ledger.cell.redis.delete(stream)
    await ledger.cell.redis.xadd(stream, {**fields, "reason": "other"}, id=last.id)
    with pytest.raises(LedgerRefused, match="is not the same there") as refused:
        await follow(ledger, copy)
    assert await copy.entries() == entries


async def test_nothing_else_writes_to_a_copy(
    ledger: RedisLedger, copy: AuditCopy, tmp_path: Path
) -> None:
    await follow(ledger, copy)
    with pytest.raises(sqlite3.IntegrityError, match="is a copy"):
        await copy.grant("ann", ref="new", amount=1, kind=Kind.PURCHASE)
    book = SqliteLedger(tmp_path / "book.sqlite", lambda: 1)
    await book.grant("ann", ref="new", amount=1, kind=Kind.PURCHASE)
    book.close()
    with pytest.raises(ConfigError, match="a ledger itself"):
        AuditCopy(tmp_path / "book.sqlite")
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(ConfigError, match="cannot be a copy"):
        AuditCopy(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot be a copy"):
        AuditCopy(tmp_path / "nowhere" / "copy.sqlite")
    assert (tmp_path / "copy.sqlite").stat().st_mode & 0o777 == 0o600, "it names who paid"


async def test_an_entry_over_http_is_the_entry(ledger: RedisLedger) -> None:
    for after in (None, (await ledger.entries())[2].id):
        page = await read_page(ledger.cell, after, 3)
        assert Page.from_object(json.loads(json.dumps(page.as_object()))) == page
    with pytest.raises(KeyError):
        from_object({"id": "1-1"})


@pytest.fixture
def ingress(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    settings = StackSettings(
        redis_url=SecretStr(redis_server.url), data_dir=tmp_path, admin_key=SecretStr(ADMIN)
    )
    with running_ingress(settings) as url:
        monkeypatch.setenv("REELSERVE_URL", url)
        monkeypatch.setenv("REELSERVE_ADMIN_KEY", ADMIN)
        yield url


def reelserve(*words: str) -> Result:
    return CliRunner().invoke(app, words)


async def test_whoever_has_the_admin_key_follows_over_http(
    ledger: RedisLedger, ingress: str, tmp_path: Path
) -> None:
    file = tmp_path / "audit.sqlite"
    for _ in range(2):
        done = reelserve("ledger", "follow", "--into", str(file), "--once", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["entries"] == len(await ledger.entries())
    copy = AuditCopy(file)
    assert await copy.entries() == await ledger.entries()
    last = copy.last
    copy.close()
    assert last is not None
    await ledger.cell.redis.xdel(ledger.cell.key("ledger"), last.id)
    refused = reelserve("ledger", "follow", "--into", str(file), "--once")
    assert refused.exit_code == 1
    assert f"lost entry {last.id}" in refused.stderr


async def test_a_copy_that_cannot_be_written_is_named(
    ledger: RedisLedger, copy: AuditCopy, ingress: str, tmp_path: Path
) -> None:
    file = tmp_path / "copy.sqlite"
    copy._db.execute("BEGIN IMMEDIATE")
    refused = reelserve("ledger", "follow", "--into", str(file), "--once")
    assert refused.exit_code == 1
    assert f"{file} cannot be used: database is locked" in refused.stderr


async def test_the_stacks_own_follower_waits_tells_once_and_stops(
    ledger: RedisLedger, redis_server: RedisServer, tmp_path: Path
) -> None:
    said: list[str] = []
    file = tmp_path / "ledger.sqlite"
    follower = Follower(redis_server.url, file, said.append, every_s=0.01)
    file.write_text("no database " * 100)
    follower.start()

    async def told() -> bool:
        return bool(said)

    await until(told)
    await asyncio.sleep(0.1)
    assert len(said) == 1
    assert "cannot be a copy" in said[0]
    file.unlink()

    async def has_all() -> bool:
        if not file.exists():
            return False
        with sqlite3.connect(file) as db:
            tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'copied'")
            if not tables.fetchone()[0]:
                return False
            (count,) = db.execute("SELECT count(*) FROM copied").fetchone()
        return bool(count == len(await ledger.entries()))

    await until(has_all)
    await ledger.grant("ann", ref="last", amount=1, kind=Kind.PURCHASE)
    follower.stop()
    copy = AuditCopy(file)
    assert await copy.entries() == await ledger.entries()
    copy.close()
    assert len(said) == 1


async def test_a_redis_that_is_away_is_no_problem(tmp_path: Path) -> None:
    said: list[str] = []
    follower = Follower("redis://127.0.0.1:1/0", tmp_path / "c", said.append, every_s=0.01)
    follower.start()
    follower.stop()
    assert said == []


async def test_a_stack_keeps_a_copy_of_its_own_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = LocalStack(StackSettings(data_dir=tmp_path, port=0))
    # Without what needs Ray.
    monkeypatch.setattr(stack, "_start_ray", lambda: None)
    monkeypatch.setattr(stack, "_start_serve", lambda: None)
    monkeypatch.setattr(stack, "_install_demo_model", lambda: None)
    await asyncio.to_thread(stack.__enter__)
    assert stack.settings.redis_url is not None
    url = stack.settings.redis_url.get_secret_value()
    redis: Redis = Redis.from_url(url, decode_responses=True)
    ledger = RedisLedger(Cell(redis))
    await ledger.grant("ann", ref="pay_1", amount=5, kind=Kind.PURCHASE)
    entries = await ledger.entries()
    await redis.aclose()
    await asyncio.to_thread(stack.__exit__, None, None, None)
    copy = AuditCopy(tmp_path / "ledger.sqlite")
    assert await copy.entries() == entries
    copy.close()
