"""`reelserve repair`: a log that Redis refuses is copied, cut at its torn end, and checked."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from deployments.aof import FOLDER, MANIFEST, Scan, log_files, scan
from deployments.cli.main import app
from deployments.redis_server import DamagedLog, RedisServer
from quota.follower import AuditCopy
from quota.ledger import Entry
from quota.pages import read_page
from serving.jobs import Cell
from serving.plan.errors import ConfigError
from tests import tools
from tests.busy_cell import BusyCell, check_whole


async def fill(folder: Path, executable: str) -> None:
    server = RedisServer(folder, executable)
    redis: Redis = Redis.from_url(server.start(), decode_responses=True)
    await BusyCell(redis).begin()
    await redis.aclose()
    server.stop()


@pytest.fixture(scope="module", params=["6.2", "7"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A data directory that a busy cell left behind, and the server it ran on."""
    folder, executable = tmp_path_factory.mktemp("filled"), tools.redis_servers()[request.param]
    asyncio.run(fill(folder / "redis", str(executable.path)))
    return folder, str(executable.path)


@pytest.fixture
def executable(filled: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one redis-server that the command line finds."""
    monkeypatch.setenv("PATH", f"{Path(filled[1]).parent}:{os.environ['PATH']}")
    monkeypatch.setattr("deployments.redis_server.find_redis_server", lambda: filled[1])
    return filled[1]


@pytest.fixture
def data_dir(filled: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled[0], tmp_path / "data dir"))


def log_of(data_dir: Path) -> Path:
    return log_files(data_dir / "redis")[-1]


def tear(data_dir: Path, end: bytes = b"") -> None:
    """Cut some bytes off the last record, and put others there."""
    log = log_of(data_dir)
    log.write_bytes(log.read_bytes()[:-5] + end)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def reelserve(*words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, ["repair", *words], input=answer)


def repaired(data_dir: Path, *words: str) -> dict[str, object]:
    done = reelserve("--data-dir", str(data_dir), "--json", "--yes", *words)
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def entries_of(data_dir: Path, executable: str) -> int:
    """What a stack finds there, which must hold."""
    server = RedisServer(data_dir / "redis", executable)
    redis: Redis = Redis.from_url(server.start(), decode_responses=True)
    try:
        await check_whole(redis)
        return int(await redis.xlen(Cell(redis).key("ledger")))
    finally:
        await redis.aclose()
        server.stop()


@pytest.mark.parametrize("end", [b"", b"\0" * 4096], ids=["torn", "zeros"])
def test_a_torn_end_is_cut_once_a_copy_is_kept(data_dir: Path, executable: str, end: bytes) -> None:
    entries = asyncio.run(entries_of(data_dir, executable))
    tear(data_dir, end)
    before = files_of(data_dir / "redis")
    with pytest.raises(ConfigError, match=r"reelserve repair --data-dir '.*data dir'"):
        RedisServer(data_dir / "redis", executable).start()
    before_log = before[str(log_of(data_dir).relative_to(data_dir / "redis"))]
    found = repaired(data_dir)
    assert found["problems"] == []
    assert found["entries"] in (entries, entries - 1)
    assert isinstance(found["cut_bytes"], int)
    assert log_of(data_dir).read_bytes() == before_log[: -found["cut_bytes"]]
    copy = files_of(Path(str(found["copy"])))
    assert copy[str(log_of(data_dir).relative_to(data_dir / "redis"))] == before_log
    assert asyncio.run(entries_of(data_dir, executable)) == found["entries"]


def test_nothing_is_cut_from_a_log_that_is_whole(data_dir: Path, executable: str) -> None:
    log = log_of(data_dir).read_bytes()
    found = repaired(data_dir)
    assert (found["copy"], found["cut_bytes"], found["problems"]) == (None, 0, [])
    assert log_of(data_dir).read_bytes() == log
    assert "Nothing is to be cut" in reelserve("--data-dir", str(data_dir)).stdout


def test_it_asks_first(data_dir: Path, executable: str) -> None:
    tear(data_dir)
    before = log_of(data_dir).read_bytes()
    cut = scan(log_of(data_dir))
    for words, answer in ([], "n\n"), ([], ""), (["--json"], "y\n"):
        refused = reelserve("--data-dir", str(data_dir), *words, answer=answer)
        assert refused.exit_code == 1
        assert f"{cut.size_bytes - cut.whole_bytes} bytes would be cut" in refused.stderr
        assert log_of(data_dir).read_bytes() == before
    assert reelserve("--data-dir", str(data_dir), answer="y\n").exit_code == 0
    assert scan(log_of(data_dir)).whole


@pytest.mark.parametrize("damage", [b"\0\0\0\0", b"$999"], ids=["zeros", "too long"])
def test_what_follows_damage_is_not_cut_by_the_way(
    data_dir: Path, executable: str, damage: bytes
) -> None:
    log = log_of(data_dir)
    text = bytearray(log.read_bytes())
    at = text.index(b"\r\n$", len(text) // 2) + 2
    text[at : at + len(damage)] = damage
    log.write_bytes(text)
    refused = reelserve("--data-dir", str(data_dir), "--yes")
    assert refused.exit_code == 1
    assert "--cut-at-damage" in refused.stderr
    assert "whole records follow" in refused.stderr
    assert log.read_bytes() == text
    found = repaired(data_dir, "--cut-at-damage")
    assert found["problems"] == []
    assert len(log.read_bytes()) < at
    assert asyncio.run(entries_of(data_dir, executable)) == found["entries"]


def test_what_is_wrong_with_the_rest_is_named(data_dir: Path, executable: str) -> None:
    log = log_of(data_dir)
    wrong = b"*4\r\n$4\r\nHSET\r\n$23\r\n{reelserve}:credits:ann\r\n$9\r\navailable\r\n$1\r\n7\r\n"
    log.write_bytes(log.read_bytes() + wrong + wrong[:9])
    done = reelserve("--data-dir", str(data_dir), "--yes")
    assert done.exit_code == 1
    assert "ann: available is 7" in done.stdout


async def copy_ledger(data_dir: Path, executable: str) -> Entry:
    """As a stack's follower does; the last entry."""
    server = RedisServer(data_dir / "redis", executable)
    redis: Redis = Redis.from_url(server.start(), decode_responses=True)
    copy = AuditCopy(data_dir / "ledger.sqlite")
    copy.append(None, await read_page(Cell(redis), None))
    last = copy.last
    copy.close()
    await redis.aclose()
    server.stop()
    assert last is not None
    return last


def test_entries_that_only_the_audit_copy_has_are_named(data_dir: Path, executable: str) -> None:
    last = asyncio.run(copy_ledger(data_dir, executable))
    found = repaired(data_dir)
    assert (found["lost"], found["problems"]) == ([], [])
    log = log_of(data_dir)
    log.write_bytes(log.read_bytes()[: log.read_bytes().rindex(b"\r\nXADD\r\n")])
    done = reelserve("--data-dir", str(data_dir), "--yes", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert [f"lost: entry {last.id} (release of ann:" in each for each in found["lost"]] == [True]
    kept = list(data_dir.glob("ledger.sqlite-*"))
    assert len(kept) == 1
    assert str(kept[0]) in done.stderr
    copy = AuditCopy(kept[0])
    assert copy.last == last
    copy.close()
    assert repaired(data_dir)["lost"] == []


def test_a_running_stack_is_left_alone(data_dir: Path, executable: str) -> None:
    tear(data_dir)
    before = log_of(data_dir).read_bytes()
    with (data_dir / "lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = reelserve("--data-dir", str(data_dir), "--yes")
    assert refused.exit_code == 1
    assert "in use by process 4711" in refused.stderr
    assert log_of(data_dir).read_bytes() == before


def test_a_folder_without_a_log_is_not_made_one(tmp_path: Path) -> None:
    assert "no Redis of ours" in reelserve("--data-dir", str(tmp_path / "wrong")).stderr
    assert not (tmp_path / "wrong").exists()


STEPS = ["keep_copy", "cut", "check"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_anywhere_it_may_be_done_again(
    data_dir: Path, executable: str, step: str, when: str
) -> None:
    tear(data_dir)
    torn = log_of(data_dir).read_bytes()
    program = (
        "import os, pathlib, sys\n"
        "from deployments.repair import Repair\n"
        "step, when, folder, executable = sys.argv[1:]\n"
        "def killed(*args, do=getattr(Repair, step)):\n"
        "    if when == 'after':\n"
        "        do(*args)\n"
        "    os.kill(os.getpid(), 9)\n"
        "setattr(Repair, step, killed)\n"
        "with Repair(pathlib.Path(folder), executable) as work:\n"
        "    end = work.examine(); work.keep_copy(); work.cut(end); work.check()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, step, when, str(data_dir), executable], timeout=60
    )
    assert run.returncode == -signal.SIGKILL
    copies = list(data_dir.glob("redis-before-repair-*"))
    assert bool(copies) == ((step, when) != ("keep_copy", "before"))
    assert all(log_files(copy)[-1].read_bytes() == torn for copy in copies)
    found = repaired(data_dir)
    assert found["problems"] == []
    assert asyncio.run(entries_of(data_dir, executable)) == found["entries"]
    assert all(copy.exists() for copy in copies)


def test_a_copy_that_cannot_be_made_leaves_the_log_alone(
    data_dir: Path, executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tear(data_dir)
    before = log_of(data_dir).read_bytes()
    log_of(data_dir).with_name("elsewhere").symlink_to("/nowhere")
    refused = reelserve("--data-dir", str(data_dir), "--yes")
    assert "nothing was changed" in refused.stderr
    assert log_of(data_dir).read_bytes() == before
    assert not list(data_dir.glob("*redis-before-repair*"))


def test_a_damaged_base_is_not_cut(data_dir: Path, executable: str) -> None:
    files = log_files(data_dir / "redis")
    if len(files) == 1:
        return  # version 6 has no base beside it
    base = files[0]
    base.write_bytes(base.read_bytes()[:-20])
    refused = reelserve("--data-dir", str(data_dir), "--yes", "--cut-at-damage")
    assert refused.exit_code == 1
    assert "put a copy in its place" in refused.stderr


@pytest.mark.parametrize(
    ("kept", "why"), [(0, "is empty"), (60, "cannot be read"), (None, "which is not there")]
)
def test_a_manifest_that_is_damaged_is_named(
    data_dir: Path, executable: str, kept: int | None, why: str
) -> None:
    manifest = data_dir / "redis" / FOLDER / MANIFEST
    if not manifest.exists():
        return  # version 6 has none
    if kept is None:
        log_of(data_dir).unlink()
    else:
        os.truncate(manifest, kept)
    with pytest.raises(DamagedLog):
        RedisServer(data_dir / "redis", executable).start()
    refused = reelserve("--data-dir", str(data_dir), "--yes")
    assert refused.exit_code == 1
    assert why in refused.stderr
    assert "put a copy of the whole folder in its place" in refused.stderr


def test_a_whole_record_that_is_wrong_is_not_cut(data_dir: Path, executable: str) -> None:
    log = log_of(data_dir)
    log.write_bytes(log.read_bytes().replace(b"\r\nXADD\r\n", b"\r\nXODD\r\n", 1))
    before = log.read_bytes()
    refused = reelserve("--data-dir", str(data_dir), "--yes", "--cut-at-damage")
    assert refused.exit_code == 1
    assert "nothing can be cut" in refused.stderr
    assert "reelserve repair" not in refused.stderr
    assert log.read_bytes() == before


def test_a_file_that_is_no_audit_copy_is_said_to_be_none(data_dir: Path, executable: str) -> None:
    (data_dir / "ledger.sqlite").write_text("no database " * 100)
    assert "cannot be a copy" in reelserve("--data-dir", str(data_dir)).stderr


def test_a_damaged_audit_copy_is_named(data_dir: Path, executable: str) -> None:
    asyncio.run(copy_ledger(data_dir, executable))
    file = data_dir / "ledger.sqlite"
    with sqlite3.connect(file) as db:
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'postings'"
        ).fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    text = bytearray(file.read_bytes())
    text[(page - 1) * page_bytes : page * page_bytes] = b"\xff" * page_bytes
    file.write_bytes(text)
    done = reelserve("--data-dir", str(data_dir))
    assert done.exit_code == 1
    assert f"{file} cannot be read: database disk image is malformed" in done.stderr


def test_a_busy_port_is_no_reason_to_repair(data_dir: Path, executable: str) -> None:
    server, other = (RedisServer(folder, executable) for folder in (data_dir / "redis", data_dir))
    other.start()
    server._port = other._port
    with pytest.raises(ConfigError) as refused:
        server.start()
    assert "repair" not in refused.value.message
    assert "in use" in refused.value.message
    other.stop()


def test_a_scan_says_what_is_torn_and_what_follows(tmp_path: Path) -> None:
    file, record = tmp_path / "log", b"*2\r\n$4\r\nINCR\r\n$1\r\na\r\n"
    begin, end = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"

    def scanned(text: bytes) -> Scan:
        file.write_bytes(text)
        return scan(file)

    change = begin + record + end
    whole = len(change)
    assert scanned(b"") == Scan(file, 0, 0, 0, 0)
    assert scanned(change).whole
    assert scanned(change + begin + record) == Scan(file, whole + len(begin + record), whole, 2, 0)
    assert scanned(change + record[:-3]) == Scan(file, whole + len(record) - 3, whole, 0, 0)
    assert scanned(change + record[:-3] + change).following == 3
    assert scanned(change + begin + record + change).following == 3
    assert scanned(b"#TS:1\r\n" + change).whole
