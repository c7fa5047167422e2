"""Archives: what was trimmed from the ledger is in them, whatever happened on the way, and what is
left still verifies."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, cast

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from deployments.audit import Follower
from deployments.cli.client import Client, Params, Reply
from deployments.cli.main import app
from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from quota.archive import archive_file, archives, put_archive, read_archive
from quota.archiver import Archiver
from quota.books import Books
from quota.export import export_json
from quota.follower import AuditCopy
from quota.ledger import Entry, Kind
from quota.pages import Page, read_page
from quota.redis_ledger import RedisLedger
from quota.verify import verify
from serving.api import patience
from serving.api.credits import next_archive
from serving.api.services import Services
from serving.jobs import Cell
from serving.plan.errors import InvalidRequest, LedgerRefused
from tests import tools
from tests.api import ADMIN, running_ingress
from tests.clock import Clock
from tests.conftest import REDIS_VERSIONS

pytestmark = pytest.mark.asyncio

DAY_S = 24 * 3600
KEEP_DAYS = 8


@pytest.fixture(scope="session")
def redis_server(moved_redis_server: tuple[RedisServer, Clock]) -> RedisServer:
    """The server under test is one whose clock can be moved."""
    return moved_redis_server[0]


@pytest_asyncio.fixture
async def ledger(cell: Cell, clock: Clock) -> RedisLedger:
    return RedisLedger(cell)


async def spend(ledger: RedisLedger, name: str) -> None:
    """A grant, a clip that is made, one that is not, one that still runs, and a refund that was a
    mistake."""
    await ledger.grant("ann", ref=f"pay_{name}", amount=100, kind=Kind.PURCHASE)
    await ledger.hold("ann", f"made_{name}", 30)
    await ledger.capture(f"made_{name}", 20)
    await ledger.hold("ann", f"failed_{name}", 30)
    await ledger.release(f"failed_{name}")
    await ledger.hold("ann", f"runs_{name}", 10)
    await ledger.reverse(f"pay_{name}", ref=f"refund_{name}", amount=5)
    await ledger.reverse(f"pay_{name}", ref=f"again_{name}", amount=5)
    await ledger.reverse(f"again_{name}", ref=f"undone_{name}")


ENTRIES = 9
"""Of one time."""


async def keep(archiver: Archiver, folder: Path, keep_days: int = KEEP_DAYS) -> bool:
    """Make one archive, whoever runs it; whether there was anything to archive."""
    made = await archiver.next(keep_days)
    if made is None:
        return False
    text = "".join(made.lines).encode()
    put_archive(folder, made.archived.number, lambda part: part.write(text))
    assert await archiver.trim(made.archived.number, made.archived.last, made.archived.sha256)
    return True


def archived_entries(folder: Path) -> list[Entry]:
    return [entry for archive in archives(folder) for entry in archive.entries]


async def test_old_entries_are_in_the_archive_and_the_rest_verifies(
    ledger: RedisLedger, clock: Clock, tmp_path: Path
) -> None:
    entries: list[Entry] = []
    for name in "abc":
        await spend(ledger, name)
        assert await keep(Archiver(ledger.cell), tmp_path) == (name != "a")
        entries = archived_entries(tmp_path) + list(await ledger.entries())
        assert (await verify(ledger.cell)).differences == []
        clock.jump(9 * DAY_S)
    assert await keep(Archiver(ledger.cell), tmp_path)
    assert await ledger.entries() == []
    assert archived_entries(tmp_path) == entries
    assert len(entries) == 3 * ENTRIES
    found = await verify(ledger.cell)
    assert (found.entries, found.differences) == (3 * ENTRIES, [])
    assert not await keep(Archiver(ledger.cell), tmp_path)
    # What was archived can still end, and be taken back.
    before = await ledger.balance("ann")
    await ledger.capture("runs_a", 4)
    await ledger.release("runs_b")
    await ledger.reverse("refund_a", ref="undone_late")
    await ledger.reverse("pay_c", ref="refund_late")
    assert (await ledger.balance("ann")).held == before.held - 20
    assert (await verify(ledger.cell)).differences == []


async def test_only_one_books_is_kept_and_what_is_wrong_is_still_found(
    ledger: RedisLedger, clock: Clock, tmp_path: Path
) -> None:
    for name in "ab":
        await spend(ledger, name)
        clock.jump(9 * DAY_S)
        await keep(Archiver(ledger.cell), tmp_path)
    redis, key = ledger.cell.redis, ledger.cell.key
    assert len(await redis.keys(key("ledger", "books", "*"))) == 1
    assert await redis.ttl((await redis.keys(key("ledger", "books", "*")))[0]) == -1
    await redis.hincrby(key("credit", "pay_a"), "left", 1)
    await redis.hset(key("credit", "pay_of_nobody"), "type", "grant")
    await redis.hset(key("hold", "runs_a"), "amount", 11)
    differences = "\n".join((await verify(ledger.cell)).differences)
    for wrong in ("pay_a: left", "pay_of_nobody: no entry speaks", "hold runs_a: amount is 11"):
        assert wrong in differences


async def test_many_entries_become_several_archives(
    ledger: RedisLedger, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quota.archiver.ENTRIES_MAX", 4)
    monkeypatch.setattr("quota.archiver.PAGE", 3)
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    entries = await ledger.entries()
    while await keep(Archiver(ledger.cell), tmp_path):
        assert (await verify(ledger.cell)).differences == []
    assert [len(archive.entries) for archive in archives(tmp_path)] == [4, 4, 1]
    assert archived_entries(tmp_path) == entries


async def test_a_ledger_with_a_mistake_is_not_archived(
    ledger: RedisLedger, clock: Clock, tmp_path: Path
) -> None:
    await spend(ledger, "a")
    wrong = {"type": "release", "user": "ann", "at_ms": 1, "of": "nothing", "cell:earned": 1}
    await ledger.cell.redis.xadd(ledger.cell.key("ledger"), wrong)
    clock.jump(9 * DAY_S)
    with pytest.raises(LedgerRefused, match=r"add up to zero|no hold 'nothing'") as refused:
        await Archiver(ledger.cell).next(KEEP_DAYS)
    assert refused.value.code == "ledger_wrong"


async def test_nothing_is_trimmed_but_what_the_archive_has(
    ledger: RedisLedger, clock: Clock
) -> None:
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    await ledger.grant("bob", ref="new", amount=1, kind=Kind.PURCHASE)
    entries, archiver = await ledger.entries(), Archiver(ledger.cell)
    made = await archiver.next(KEEP_DAYS)
    assert made is not None
    number, last, sha256 = 1, made.archived.last, made.archived.sha256
    for wrong in (
        (number + 1, last, sha256),
        (number, entries[3].id, sha256),
        (number, last, "0" * 64),
        (number, "1-1", sha256),
    ):
        with pytest.raises(LedgerRefused) as refused:
            await archiver.trim(*wrong)
        assert refused.value.code == "archive_differs"
    with pytest.raises(InvalidRequest, match="stay"):
        await archiver.trim(number, entries[-1].id, sha256)
    assert await ledger.entries() == entries
    for _ in range(2):
        assert await archiver.trim(number, last, sha256) == made.archived
    assert await ledger.entries() == entries[ENTRIES:]


async def test_any_number_of_archivers_lose_nothing(
    ledger: RedisLedger, clock: Clock, tmp_path: Path
) -> None:
    for name in "abcdef":
        await spend(ledger, name)
        clock.jump(9 * DAY_S)
    entries = await ledger.entries()
    accepted: dict[int, list[str]] = {}

    async def one(days: int) -> None:
        archiver = Archiver(ledger.cell)
        for _ in range(8):
            with suppress(LedgerRefused):
                made = await archiver.next(days)
                if made is None:
                    return
                head = made.archived
                await archiver.trim(head.number, head.last, head.sha256)
                assert accepted.setdefault(head.number, list(made.lines)) == made.lines

    async def verifies() -> None:
        for _ in range(6):
            assert (await verify(ledger.cell)).differences == []

    await asyncio.gather(verifies(), *(one(days) for days in (50, 40, 30, 30, 20, 8)))
    assert sorted(accepted) == list(range(1, len(accepted) + 1))
    for number, lines in accepted.items():
        archive_file(tmp_path, number).write_text("".join(lines))
    assert archived_entries(tmp_path) + list(await ledger.entries()) == entries
    assert (await verify(ledger.cell)).differences == []


@pytest.mark.parametrize("version", REDIS_VERSIONS)
async def test_a_restart_finds_a_trimmed_ledger_as_it_was(tmp_path: Path, version: str) -> None:
    clock = Clock(tmp_path)
    executable = str(tools.redis_servers()[version].path)
    server = RedisServer(tmp_path / "redis", executable, environment=clock.environment)
    entries: list[Entry] = []
    for name in "abc":
        redis: Redis = Redis.from_url(server.start(), decode_responses=True)
        ledger = RedisLedger(Cell(redis))
        assert await ledger.entries() == entries
        assert (await verify(ledger.cell)).differences == []
        await spend(ledger, name)
        if name == "b":
            await redis.bgrewriteaof()
            while (await redis.info("persistence"))["aof_rewrite_in_progress"]:
                await asyncio.sleep(0.01)
        clock.jump(9 * DAY_S)
        assert await keep(Archiver(ledger.cell), tmp_path)
        if name != "b":  # so that one of the logs ends with a ledger that is empty
            await ledger.grant("bob", ref=f"pay_bob_{name}", amount=1, kind=Kind.PURCHASE)
        entries = list(await ledger.entries())
        await redis.aclose()
        server.stop()
    assert len(archived_entries(tmp_path)) == 3 * ENTRIES + 1


async def test_whoever_reads_what_is_trimmed_meanwhile_is_told(
    ledger: RedisLedger, clock: Clock, tmp_path: Path
) -> None:
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    await ledger.grant("bob", ref="new", amount=1, kind=Kind.PURCHASE)
    entries = await ledger.entries()
    copy = AuditCopy(tmp_path / "copy.sqlite")
    copy.append(None, await read_page(ledger.cell, None, 3))
    exported = export_json(ledger)
    await anext(exported)
    await keep(Archiver(ledger.cell), tmp_path)
    for line in entries[1:]:
        assert json.loads(await anext(exported))["id"] == line.id  # that page was read
    last = copy.last
    assert last is not None
    with pytest.raises(LedgerRefused) as refused:
        await ledger.entries(after=last.id)
    assert refused.value.code == "archived"
    with pytest.raises(LedgerRefused) as refused:
        copy.append(last, await read_page(ledger.cell, last.id))
    assert refused.value.code == "entries_archived"
    assert copy.count() == 3
    copy.close()
    # To have all that is archived is to have missed nothing.
    assert await ledger.entries(after=entries[ENTRIES - 1].id) == entries[ENTRIES:]


@pytest.mark.parametrize("seed", range(4))
async def test_a_ledger_that_goes_on_for_months(
    ledger: RedisLedger, clock: Clock, tmp_path: Path, seed: int
) -> None:
    """Anything happens in any order, and old entries are archived in between."""
    chance = random.Random(seed)  # noqa: S311
    copy = AuditCopy(tmp_path / "copy.sqlite")
    refs, jobs = ["pay_0"], ["video_0"]
    now = int(time.time() * 1000)

    async def step(number: int) -> None:
        user = chance.choice(["ann", "bob"])
        match chance.randrange(9):
            case 0 | 1:
                expires = chance.choice([None, now + chance.randrange(200) * DAY_S * 1000])
                refs.append(f"pay_{number}")
                kind = chance.choice(list(Kind))
                await ledger.grant(user, ref=refs[-1], amount=20, kind=kind, expires_ms=expires)
            case 2 | 3:
                jobs.append(f"video_{number}")
                await ledger.hold(user, jobs[-1], chance.randint(1, 9))
            case 4:
                await ledger.capture(chance.choice(jobs), chance.randrange(9))
            case 5:
                await ledger.release(chance.choice(jobs))
            case 6:
                refs.append(f"refund_{number}")
                amount = chance.choice([None, chance.randint(1, 20)])
                await ledger.reverse(chance.choice(refs[:-1]), ref=refs[-1], amount=amount)
            case 7:
                await ledger.take(user, ref=f"fix_{number}", amount=3, reason="r")
            case 8:
                await ledger.expire()

    for number in range(1, 150):
        with suppress(LedgerRefused):
            await step(number)
        if chance.random() < 0.2:
            clock.jump(chance.randrange(6) * DAY_S)
        last = copy.last
        copy.append(last, await read_page(ledger.cell, last.id if last else None))
        if chance.random() < 0.1:
            await keep(Archiver(ledger.cell), tmp_path)
        if number % 5 == 0:
            assert (await verify(ledger.cell)).differences == []
    entries = archived_entries(tmp_path) + list(await ledger.entries())
    assert await copy.entries(limit=1000) == entries
    assert archive_file(tmp_path, 2).exists()
    books = Books()
    for entry in entries:
        books.apply(entry)
        assert Books.open(books.close(), books.count, books.last).close() == books.close()
    assert books.mistakes == []
    copy.close()


# The files.


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest_asyncio.fixture
async def folder(ledger: RedisLedger, clock: Clock, tmp_path: Path) -> Path:
    """Three archives, one behind the other."""
    for name in "abc":
        await spend(ledger, name)
        clock.jump(9 * DAY_S)
        await keep(Archiver(ledger.cell), tmp_path)
    return tmp_path


def sealed(lines: list[str]) -> str:
    """The lines with a SHA-256 that is right."""
    sha256 = hashlib.sha256("".join(lines[:-1]).encode()).hexdigest()
    return "".join([*lines[:-1], json.dumps({"sha256": sha256}) + "\n"])


async def test_whatever_is_done_to_archives_is_noticed(folder: Path) -> None:
    assert len(list(archives(folder))) == 3
    file = archive_file(folder, 2)
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    edited = [*lines[:1], lines[1].replace('"ann"', '"eve"'), *lines[2:]]
    swapped = [lines[0], lines[2], lines[1], *lines[3:]]
    record = next(n for n, line in enumerate(lines) if line.startswith('["cell:earned"'))
    forged = [*lines[:record], '["cell:earned", "1"]\n', *lines[record + 1 :]]
    for text, why in (
        ("".join(edited), "SHA-256"),
        (sealed(edited), "not a grant of the user"),
        (sealed(swapped), "does not have the entries|does not come after|no hold"),
        (sealed(forged), "the books in archive 2"),
        (sealed([*lines[:1], *lines[2:]]), "as many lines"),
        (whole[:-1], "SHA-256"),
        (whole[: len(whole) // 2], "SHA-256|damaged"),
        (whole + "\n", "SHA-256|damaged"),
        (whole.replace("\n", "\r\n"), "SHA-256"),
        ("", "damaged"),
        (archive_file(folder, 1).read_text(), "does not follow"),
        (sealed([lines[0].replace('"format": 1', '"format": 2'), *lines[1:]]), "format is 2"),
    ):
        file.write_text(text)
        with pytest.raises(LedgerRefused, match=why) as refused:
            list(archives(folder))
        assert refused.value.code == "archive_damaged"
    file.unlink()
    with pytest.raises(LedgerRefused, match=r"000002.jsonl is missing"):
        list(archives(folder))


async def test_a_whole_chain_that_was_made_anew_is_not_the_ledgers(
    folder: Path, ingress: str
) -> None:
    first = archive_file(folder, 3).read_text().splitlines(keepends=True)
    reason = [first[0], first[1].replace('"type"', '"reason": "x", "type"'), *first[2:]]
    assert reelserve("ledger", "verify", "--archives", str(folder)).exit_code == 0
    archive_file(folder, 3).write_text(sealed(reason))
    found = reelserve("ledger", "verify", "--archives", str(folder))
    assert found.exit_code == 1
    assert "archives: number 3 is" in found.stdout


# The command line.


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


async def test_the_operator_archives_and_verifies(
    ledger: RedisLedger, clock: Clock, ingress: str, tmp_path: Path
) -> None:
    folder = tmp_path / "kept" / "ledger"
    await spend(ledger, "a")
    clock.jump(100 * DAY_S)
    await spend(ledger, "b")
    entries = await ledger.entries()
    done = reelserve("ledger", "archive", str(folder), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["entries"] == ENTRIES
    assert archived_entries(folder) == entries[:ENTRIES]
    assert await ledger.entries() == entries[ENTRIES:]
    done = reelserve("ledger", "archive", str(folder))
    assert "0 entries were archived" in done.stdout

    for words in ([], ["--archives", str(folder)]):
        found = reelserve("ledger", "verify", *words)
        assert found.exit_code == 0, found.output
        assert "18 entries." in found.stdout
    shown = reelserve("ledger", "export")
    assert len(shown.stdout.splitlines()) == ENTRIES
    assert "in the archives 1 to 1" in shown.stderr

    # A copy that begins now has to begin with the archives.
    file = str(tmp_path / "copy.sqlite")
    refused = reelserve("ledger", "follow", "--into", file, "--once")
    assert refused.exit_code == 1
    assert "--archives" in refused.stderr
    for _ in range(2):
        words = ["--into", file, "--once", "--archives", str(folder)]
        assert reelserve("ledger", "follow", *words).exit_code == 0
    copy = AuditCopy(Path(file))
    assert await copy.entries() == entries
    copy.close()

    # A user sees what is not archived, page by page.
    headers = {"authorization": f"Bearer {ADMIN}"}
    async with httpx.AsyncClient(base_url=ingress, headers=headers) as client:
        path, seen, after = "/v1/admin/ledger/users/ann", [], None
        while True:
            params = {"limit": "4"} | ({"after": after} if after else {})
            page = (await client.get(path, params=params)).json()
            seen += [entry["id"] for entry in page["data"]]
            if not page["has_more"]:
                break
            after = page["last_id"]
    assert seen == [entry.id for entry in reversed(entries[ENTRIES:])]


async def test_an_archive_is_sent_in_few_pieces(ledger: RedisLedger, clock: Clock) -> None:
    """Each piece keeps everybody else waiting."""
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    services = cast(Services, SimpleNamespace(ledger=ledger))
    answer = await next_archive(services, KEEP_DAYS)
    (piece,) = [piece async for piece in answer.body_iterator]
    made = await Archiver(ledger.cell).next(KEEP_DAYS)
    assert made is not None
    assert piece == "".join(made.lines)


async def test_another_folder_is_no_place_for_the_next(
    ledger: RedisLedger, clock: Clock, ingress: str, tmp_path: Path
) -> None:
    for name in "ab":
        await spend(ledger, name)
        clock.jump(9 * DAY_S)
        done = reelserve("ledger", "archive", str(tmp_path / name), "--keep-days", "8")
        assert done.exit_code == (0 if name == "a" else 1)
    assert "000001.jsonl is not the newest archive" in done.stderr
    assert len(await ledger.entries()) == ENTRIES


async def test_of_two_who_archive_at_once_into_two_folders_one_is_refused(
    ledger: RedisLedger,
    clock: Clock,
    ingress: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    await spend(ledger, "b")
    one, other = tmp_path / "one", tmp_path / "other"
    download = Client.download

    def overtaken(api: Client, *path: str, params: Params, into: BinaryIO) -> None:
        monkeypatch.setattr(Client, "download", download)
        words = ["ledger", "archive", str(one), "--keep-days", "8"]
        assert reelserve(*words).exit_code == 0
        clock.jump(9 * DAY_S)
        download(api, *path, params=params, into=into)

    monkeypatch.setattr(Client, "download", overtaken)
    refused = reelserve("ledger", "archive", str(other), "--keep-days", "8")
    assert refused.exit_code == 1
    assert "Archive 2 is the next one, and not 1" in refused.stderr
    assert list(other.iterdir()) == []
    assert len(await ledger.entries()) == ENTRIES
    assert reelserve("ledger", "archive", str(one), "--keep-days", "8").exit_code == 0
    assert reelserve("ledger", "verify", "--archives", str(one)).exit_code == 0


async def test_an_archive_under_the_name_of_the_next_is_none(
    ledger: RedisLedger, clock: Clock, ingress: str, tmp_path: Path
) -> None:
    folder = tmp_path / "ledger"
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    words = ["ledger", "archive", str(folder), "--keep-days", "8"]
    assert reelserve(*words).exit_code == 0
    archive_file(folder, 2).write_bytes(archive_file(folder, 1).read_bytes())
    refused = reelserve(*words)
    assert refused.exit_code == 1
    assert "000002.jsonl has archive 1" in refused.stderr


async def test_the_stacks_own_copy_begins_with_the_archives(
    ledger: RedisLedger, clock: Clock, ingress: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    folder, file, said = tmp_path / "ledger", tmp_path / "ledger.sqlite", asyncio.Event()
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    await spend(ledger, "b")
    entries = await ledger.entries()
    assert reelserve("ledger", "archive", str(folder), "--keep-days", "8").exit_code == 0
    loop = asyncio.get_running_loop()

    def notice(problem: str) -> None:
        loop.call_soon_threadsafe(said.set)

    follower = Follower(redis_server.url, file, notice, every_s=0.01)
    follower.start()
    await asyncio.wait_for(said.wait(), 10)
    words = ["ledger", "follow", "--into", str(file), "--once", "--archives", str(folder)]
    done = await asyncio.to_thread(reelserve, *words)
    assert done.exit_code == 0, done.output
    await ledger.grant("ann", ref="last", amount=1, kind=Kind.PURCHASE)
    follower.stop()
    copy = AuditCopy(file)
    assert [entry.id for entry in (await copy.entries())[:-1]] == [entry.id for entry in entries]
    assert (await copy.entries())[-1].ref == "last"
    copy.close()


async def test_nothing_is_trimmed_before_its_file_is_there_for_good(
    ledger: RedisLedger,
    clock: Clock,
    ingress: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    above = tmp_path / "new"
    folder = above / "ledger"
    fsync, post = os.fsync, Client.post
    synced: list[str] = []

    def noted(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def killed(*args: object, **named: object) -> Reply:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", noted)
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    words = ["ledger", "archive", str(folder), "--keep-days", "8"]
    monkeypatch.setattr(Client, "post", killed)
    assert reelserve(*words).exit_code != 0
    assert synced[:2] == [str(tmp_path), str(above)]
    assert synced[-1] == str(folder)

    # Another run finds the file, and cannot know whether the first one came that far.
    synced.clear()
    assert reelserve(*words).exit_code != 0
    assert synced == [str(folder)]
    monkeypatch.setattr(Client, "post", post)
    assert reelserve(*words).exit_code == 0
    assert await ledger.entries() == []


async def test_a_refusal_that_comes_late_is_told(
    ledger: RedisLedger,
    clock: Clock,
    ingress: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "ledger"
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    assert reelserve("ledger", "archive", str(folder), "--keep-days", "8").exit_code == 0
    await ledger.cell.redis.flushall()
    monkeypatch.setattr(patience, "FIRST_S", 0)
    refused = reelserve("ledger", "archive", str(folder), "--keep-days", "8")
    assert refused.exit_code == 1
    assert "This is not this ledger's next archive" in refused.stderr


async def test_a_folder_that_cannot_be_used_is_named(
    ledger: RedisLedger,
    clock: Clock,
    ingress: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    (tmp_path / "file").touch()
    refused = reelserve("ledger", "archive", str(tmp_path / "file" / "ledger"))
    assert f"{tmp_path / 'file' / 'ledger'} cannot be used" in refused.stderr

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "ledger"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        refused = reelserve("ledger", "archive", str(folder), "--keep-days", "8")
    assert refused.exit_code == 1
    assert f"{folder} cannot be used: [Errno 28] No space left" in refused.stderr
    assert files_in(folder) == []
    assert len(await ledger.entries()) == ENTRIES


async def test_a_copy_of_another_ledger_does_not_go_on_from_these_archives(
    ledger: RedisLedger, clock: Clock, ingress: str, tmp_path: Path
) -> None:
    folder, files = tmp_path / "ledger", [tmp_path / name for name in ("old", "newer")]
    await spend(ledger, "a")
    second = (await ledger.entries())[1]
    for file, entry_id in zip(files, ("5-0", second.id), strict=True):
        copy = AuditCopy(file)
        entry = replace((await ledger.entries())[0], id=entry_id, user="zoe", ref="other")
        entry = replace(entry, postings={"cell:issued": -7, "grant:other": 7})
        copy.append(None, Page(None, [entry], None))
        copy.close()
    clock.jump(9 * DAY_S)
    assert reelserve("ledger", "archive", str(folder), "--keep-days", "8").exit_code == 0
    for file in files:
        words = ["ledger", "follow", "--into", str(file), "--once", "--archives", str(folder)]
        refused = reelserve(*words)
        assert refused.exit_code == 1
        assert "another ledger" in refused.stderr


KILLED = """
import os, sys
from deployments.cli import client, ledger
from deployments.audit import Follower
from deployments.cli.client import Client, Params, Reply
from deployments.cli.main import app
import quota.archive

place, name, when = {
    "download": (client.Client, "download"), "put": (os, "link"), "trim": (client.Client, "post"),
}[sys.argv[1]] + (sys.argv[2],)
do = getattr(place, name)

def dies(*args, **named):
    if when == "after":
        do(*args, **named)
    os.kill(os.getpid(), 9)

setattr(place, name, dies)
app(["ledger", "archive", sys.argv[3], "--keep-days", "8"])
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["download", "put", "trim"])
async def test_killed_anywhere_it_loses_nothing_and_may_be_run_again(
    ledger: RedisLedger, clock: Clock, ingress: str, tmp_path: Path, step: str, when: str
) -> None:
    folder = tmp_path / "ledger"
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    await spend(ledger, "b")
    entries = await ledger.entries()
    words = ["-c", KILLED, step, when, str(folder)]
    process = await asyncio.create_subprocess_exec(sys.executable, *words)
    assert await process.wait() == -signal.SIGKILL
    there = archived_entries(folder) + list(await ledger.entries())
    assert {entry.id for entry in there} == {entry.id for entry in entries}
    clock.jump(9 * DAY_S)  # the next run would cut elsewhere
    assert reelserve("ledger", "archive", str(folder), "--keep-days", "8").exit_code == 0
    assert archived_entries(folder) + list(await ledger.entries()) == entries
    assert reelserve("ledger", "verify", "--archives", str(folder)).exit_code == 0


async def test_a_cell_that_dies_before_it_trims_is_asked_again(
    ledger: RedisLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    entries, archiver = await ledger.entries(), Archiver(ledger.cell)
    made = await archiver.next(KEEP_DAYS)
    assert made is not None
    told = made.archived.number, made.archived.last, made.archived.sha256

    async def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ledger.cell, "run", dies)
        with suppress(KeyboardInterrupt):
            await archiver.trim(*told)
    (staged,) = await ledger.cell.redis.keys(ledger.cell.key("ledger", "staged", "*"))
    assert await ledger.cell.redis.ttl(staged) > 0, "they go by themselves"
    assert not await ledger.cell.redis.exists(ledger.cell.key("ledger", "books", told[2]))
    assert await ledger.entries() == entries
    assert (await verify(ledger.cell)).differences == []
    await archiver.trim(*told)
    assert await ledger.entries() == []
    assert (await verify(ledger.cell)).differences == []


def write(text: bytes, part: BinaryIO) -> None:
    part.write(text)


async def test_a_repetition_that_comes_too_late_changes_nothing(
    ledger: RedisLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    slow, fast = Archiver(ledger.cell), Archiver(Cell(ledger.cell.redis))
    made = await slow.next(KEEP_DAYS)
    assert made is not None
    told = made.archived.number, made.archived.last, made.archived.sha256
    run = ledger.cell.run

    async def overtaken(script: str, *args: str | int) -> object:
        await fast.trim(*told)
        return await run(script, *args)

    monkeypatch.setattr(ledger.cell, "run", overtaken)
    assert await slow.trim(*told) == made.archived
    redis, key = ledger.cell.redis, ledger.cell.key
    assert await redis.keys(key("ledger", "staged", "*")) == []
    assert await redis.ttl(key("ledger", "books", told[2])) == -1
    assert (await verify(ledger.cell)).differences == []


async def test_an_answer_that_was_cut_is_no_archive(
    ledger: RedisLedger, clock: Clock, tmp_path: Path
) -> None:
    await spend(ledger, "a")
    clock.jump(9 * DAY_S)
    made = await Archiver(ledger.cell).next(KEEP_DAYS)
    assert made is not None
    for kept in range(1, len(made.lines)):
        cut = "".join(made.lines[:kept]).encode()
        with pytest.raises(LedgerRefused, match="damaged"):
            put_archive(tmp_path, 1, partial(write, cut))
    assert files_in(tmp_path) == []
    text = "".join(made.lines).encode()
    assert put_archive(tmp_path, 1, partial(write, text))
    with pytest.raises(FileExistsError):
        put_archive(tmp_path, 1, partial(write, text))
    assert read_archive(archive_file(tmp_path, 1)).archived == made.archived
    assert len(files_in(tmp_path)) == 1
