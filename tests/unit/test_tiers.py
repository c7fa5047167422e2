"""What a tier says, where a file of tiers is wrong, and how an edit comes into force."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo, available_timezones

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from deployments.cli.main import app as cli
from quota.config_file import FILE_BYTES_MAX
from quota.located import read_document
from quota.settings import QuotaSettings
from quota.tiers import COUNT_MAX, Surge, Tier, TierFile, Tiers, load_tiers
from serving.api import tiers
from serving.api.auth import require_admin
from serving.plan.classes import CLASSES, ServiceClass
from serving.plan.errors import ConfigError, NotPermitted

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS

GOOD = """\
default_tier: free
time_zone: Europe/Berlin
tiers:
  free:
    generations_per_day: 30
    sizes: [96x96, 1280x720]
    surge:
      generations_per_day: 10
      class: relaxed
  pro:
    weight: 4
    class: burst
    models:
      - demo-wan
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "tiers.yaml"
    made.write_text(GOOD)
    return made


# The shipped file


def test_the_shipped_file_bounds_everybody_but_the_unlimited() -> None:
    shipped = load_tiers(QuotaSettings().tiers_path)

    assert (shipped.default_tier, shipped.time_zone) == ("free", "UTC")
    assert shipped.tiers["unlimited"] == Tier()
    limits = ("generations_per_day", "gpu_seconds_per_day", "running_jobs", "queued_jobs")
    for limit in (*limits, "requests_per_minute"):
        free, pro = (getattr(shipped.tiers[name], limit) for name in ("free", "pro"))
        assert 0 < free < pro
    assert shipped.tiers["pro"].weight > shipped.tiers["free"].weight


def test_a_tier_that_says_nothing_bounds_nothing() -> None:
    said = Tier().model_dump()

    assert said.pop("service_class") == ServiceClass.STANDARD
    assert said.pop("beyond") == "relaxed"
    assert said.pop("weight") == 1
    assert set(said.values()) == {None}


def test_fields_are_read_as_they_are_written(file: Path) -> None:
    read = load_tiers(file)

    assert read.tiers["free"].surge == Surge(
        generations_per_day=10, service_class=ServiceClass.RELAXED
    )
    assert read.tiers["pro"].service_class is ServiceClass.BURST
    assert read.tiers["pro"].models == ["demo-wan"]


def test_names_of_tiers_are_text_whatever_they_look_like(file: Path) -> None:
    file.write_text("default_tier: no\ntiers: {no: {}, 2026: {}}\n")
    with pytest.raises(ConfigError, match="line 1, default_tier: should be a valid string"):
        load_tiers(file)

    file.write_text("default_tier: 'no'\ntiers: {no: {}, 2026: {}}\n")
    assert set(load_tiers(file).tiers) == {"no", "2026"}


def test_a_part_may_be_given_once_and_named_again(file: Path) -> None:
    file.write_text("default_tier: a\ntiers:\n  a: {sizes: &small [96x96]}\n  b: {sizes: *small}\n")
    assert load_tiers(file).tiers["b"].sizes == ["96x96"]


def test_what_was_read_cannot_be_changed(file: Path) -> None:
    free = load_tiers(file).tiers["free"]
    with pytest.raises(ValidationError, match="frozen"):
        free.weight = 2  # type: ignore[misc]


counts = st.none() | st.integers(1, COUNT_MAX)
classes = st.sampled_from(CLASSES)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
any_tier = st.builds(
    Tier,
    generations_per_day=counts,
    gpu_seconds_per_day=st.none() | st.floats(0, COUNT_MAX),
    running_jobs=counts,
    queued_jobs=counts,
    requests_per_minute=counts,
    models=st.none() | st.lists(st.text(max_size=9), min_size=1, max_size=3),
    sizes=st.none() | st.lists(st.sampled_from(["96x96", "1280x720"]), min_size=1),
    service_class=classes,
    beyond=st.sampled_from(["relaxed", "credits", "refuse"]),
    weight=st.floats(0.001, 1000),
    # The hardest: whatever the tier says, it is less.
    surge=st.none() | st.just(Surge(generations_per_day=0, service_class=ServiceClass.RELAXED)),
)
any_zone = st.sampled_from(sorted(available_timezones() - {"localtime", "Factory"}))


@given(st.dictionaries(names, any_tier, min_size=1, max_size=4), any_zone, st.data())
def test_whatever_can_be_said_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    said: dict[str, Tier],
    zone: str,
    data: st.DataObject,
) -> None:
    default = data.draw(st.sampled_from(sorted(said)))
    meant = Tiers(default_tier=default, time_zone=zone, tiers=said)
    file = tmp_path_factory.getbasetemp() / "said.yaml"
    file.write_text(yaml.safe_dump(meant.model_dump(mode="json", by_alias=True)))

    assert load_tiers(file) == meant


# Mistakes

NO_FIELD = "no such field; there are "


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("weight: 4", "weight: 0", "line 11, tiers.pro.weight: should be greater than or equal"),
        ("weight: 4", "weight: .nan", "line 11, tiers.pro.weight: should be less than or equal"),
        ("weight: 4", "weight: four", "line 11, tiers.pro.weight: should be a valid number"),
        ("weight: 4", "weight: null", "line 11, tiers.pro.weight: should be a valid number"),
        ("weight: 4", "weight:", "line 11, tiers.pro.weight: has no value: write null"),
        ("weight: 4", "wieght: 4", f"line 11, tiers.pro.wieght: {NO_FIELD}generations_per_day"),
        ("weight: 4", "service_class: burst", f"line 11, tiers.pro.service_class: {NO_FIELD}"),
        ("weight: 4", "<<: {weight: 4}", f"line 11, tiers.pro.<<: {NO_FIELD}generations_per_day"),
        ("weight: 4", "class: burst", "line 12, tiers.pro.class: given twice, first in line 11"),
        ("weight: 4", "[weight]: 4", "line 11, tiers.pro: a field's name is a word"),
        ("weight: 4", "weight: *four", "line 11: not YAML: found undefined alias 'four'"),
        ("weight: 4", "weight: [4", "line 12: not YAML: while parsing a flow sequence"),
        ("weight: 4", "\tweight: 4", "line 11: not YAML: while scanning for the next token"),
        ("weight: 4", "beyond: x", "line 11, tiers.pro.beyond: should be 'relaxed', 'credits' or"),
        ("weight: 4", "running_jobs: 0", "line 11, tiers.pro.running_jobs: should be greater"),
        ("weight: 4", "queued_jobs: 0", "line 11, tiers.pro.queued_jobs: should be greater"),
        ("weight: 4", "running_jobs: 2.5", "line 11, tiers.pro.running_jobs: should be a valid"),
        ("weight: 4", "queued_jobs: yes", "line 11, tiers.pro.queued_jobs: should be a valid"),
        ("weight: 4", "queued_jobs: 5000000000", "line 11, tiers.pro.queued_jobs: should be less"),
        ("weight: 4", "queued_jobs: " + "9" * 5000, "line 11, tiers.pro.queued_jobs: should be a"),
        ("weight: 4", "queued_jobs: !!int x", "line 11, tiers.pro.queued_jobs: should be a valid"),
        ("weight: 4", "queued_jobs: 2026-11-20", "line 11, tiers.pro.queued_jobs: should be a"),
        ("weight: 4", "gpu_seconds_per_day: -1", "line 11, tiers.pro.gpu_seconds_per_day: should"),
        ("weight: 4", "gpu_seconds_per_day: .inf", "line 11, tiers.pro.gpu_seconds_per_day: shou"),
        ("class: burst", "class: fast", "line 12, tiers.pro.class: should be 'burst', 'standard'"),
        ("- demo-wan", "- {demo: wan}", "line 14, tiers.pro.models.0: should be a valid string"),
        ("\n      - demo-wan", " []", "line 13, tiers.pro.models: List should have at least 1"),
        ("\n      - demo-wan", " demo-wan", "line 13, tiers.pro.models: should be a valid list"),
        ("1280x720", "1280", "line 6, tiers.free.sizes.1: should be a valid string, not 1280"),
        ("1280x720", "big", "line 6, tiers.free.sizes.1: 'big' is not a size; write WIDTHxHEIGHT"),
        ("_day: 10\n", "_day: 31\n", "line 7, tiers.free.surge: 31 generations_per_day are more"),
        ("class: relaxed", "class: burst", "line 7, tiers.free.surge: class burst goes before st"),
        ("class: relaxed", "beyond: refuse", f"line 9, tiers.free.surge.beyond: {NO_FIELD}genera"),
        ("default_tier: free", "default_tier: fee", "line 1, default_tier: no tier 'fee' in this"),
        ("default_tier: free", "#", "line 2, default_tier: is missing"),
        ("Europe/Berlin", "Europe", "line 2, time_zone: no time zone 'Europe'; give an IANA name"),
        ("Europe/Berlin", "../tiers", "line 2, time_zone: no time zone '../tiers'; give an IANA"),
        ("Europe/Berlin", "Europe/Bern", "line 2, time_zone: no time zone 'Europe/Bern'; give"),
        ("time_zone: ", "timezone: ", f"line 2, timezone: {NO_FIELD}tiers, default_tier, time_z"),
        ("  pro:", "  p/ro:", "line 10, tiers.p/ro: String should match pattern"),
        ("  pro:", "  free:", "line 10, tiers.free: given twice, first in line 4"),
        ("  pro:", "  pro: 3\n  more:", "line 10, tiers.pro: must be fields, each with a name"),
        ("  pro:", "  pro:\n  more:", "line 10, tiers.pro: has no value: write null for no limit"),
        ("tiers:\n", "tiers: {}\nrest:\n", "line 3, tiers: Dictionary should have at least 1"),
        (GOOD, "", "line 1: the file is empty"),
        (GOOD, "# nothing\n", "line 1: the file is empty"),
        (GOOD, "- free\n", "line 1: must be fields, each with a name and a value"),
        (GOOD, GOOD + "---\n" + GOOD, "line 15: not YAML: expected a single document"),
        (GOOD, "[" * 5000, "line 1: nested too deeply"),
        (GOOD, "a: &a\n  b: *a\n", "line 2, a.b.b.b.b.b.b.b.b: nested too deeply"),
        (GOOD, "default_tier: free\n\x00", "line 2: not YAML: special characters are not allowed"),
    ],
)
def test_a_mistake_is_told_with_its_file_line_and_field(
    file: Path, was: str, becomes: str, told: str
) -> None:
    assert was in GOOD
    file.write_text(GOOD.replace(was, becomes, 1))

    with pytest.raises(ConfigError) as caught:
        load_tiers(file)

    assert caught.value.message.startswith(f"{file} {told}")
    assert "\n" not in caught.value.message


def test_a_short_file_cannot_grow_without_bound(file: Path) -> None:
    doubled = "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}, *x{n - 1}]\n" for n in range(1, 8))
    wide = "x0: &x0 [" + "a, " * 100 + "a]\n"
    file.write_text(wide + doubled)

    with pytest.raises(ConfigError, match="too many values"):
        load_tiers(file)


def test_what_is_not_text_or_too_much_of_it_is_a_mistake(file: Path) -> None:
    file.write_bytes(b"default_tier: free\nti\xffers: {}\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        load_tiers(file)

    file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match=f"longer than {FILE_BYTES_MAX} bytes"):
        load_tiers(file)


def test_a_file_with_a_byte_order_mark_is_read(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_tiers(file).default_tier == "free"


def test_every_mistake_is_told_from_the_top_down_and_many_are_counted(file: Path) -> None:
    file.write_text("tiers:\n  a:\n    weight: 0\n    beyond: x\n    z: 1\ndefault_tier: b\n")
    with pytest.raises(ConfigError) as caught:
        load_tiers(file)
    lines = [part.partition(",")[0] for part in caught.value.message.split("; line ")]
    assert lines == [f"{file} line 3", "4", "5"]

    file.write_text("tiers:\n  a:\n" + "".join(f"    x{n}: 1\n" for n in range(20)))
    with pytest.raises(ConfigError, match=r"; and 16 more$"):  # default_tier is missing too
        load_tiers(file)


@given(st.binary(max_size=200) | st.text(alphabet="ab:-{}[]&*!#'\"|>? \n\t0.~").map(str.encode))
def test_no_bytes_at_all_are_anything_but_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:  # none is a file of tiers by chance
        load_tiers(file)
    assert caught.value.message.startswith(f"{file} line ")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=12,
    )
)
def test_values_are_what_yaml_says_they_are(values: object) -> None:
    raw = yaml.safe_dump({"values": values}).encode()
    assert read_document(raw).data == {"values": values}


# Who may do what


def test_a_user_without_a_tier_or_of_one_that_is_gone_has_the_default(file: Path) -> None:
    read = load_tiers(file)
    free, pro = read.tiers["free"], read.tiers["pro"]

    assert read.of("pro") == ("pro", pro)
    assert read.of(None) == ("free", free)
    assert read.of("gold") == ("free", free)


def test_a_model_may_be_listed_by_any_of_its_names() -> None:
    tier = Tier(models=["sora-2", "wan2.1"])

    tier.allows("demo-wan", ["demo", "sora-2"], "96x96")
    tier.allows("wan2.1", [], "96x96")
    with pytest.raises(NotPermitted) as caught:
        tier.allows("wan2.2", ["sora-3"], "96x96")

    assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")
    assert "'wan2.2'" in caught.value.message
    assert "sora-2, wan2.1. Choose one of them, or ask the operator" in caught.value.message


def test_a_size_that_is_not_listed_is_refused() -> None:
    tier = Tier(sizes=["96x96", "1280x720"])

    tier.allows("demo-wan", [], "1280x720")
    with pytest.raises(NotPermitted) as caught:
        tier.allows("demo-wan", [], "1920x1080")

    assert (caught.value.code, caught.value.param) == ("size_not_allowed", "size")
    assert "96x96, 1280x720" in caught.value.message


def test_a_tier_that_lists_nothing_has_everything() -> None:
    Tier().allows("wan2.2", [], "1920x1080")


# Days


def at(zone: str, *when: int, fold: int = 0) -> int:
    year, month, day, *time = when
    local = datetime(year, month, day, *time, fold=fold, tzinfo=ZoneInfo(zone))  # type: ignore[arg-type,misc]
    return int(local.timestamp()) * 1000


def days(zone: str, now_ms: int) -> list[int]:
    return Tiers(default_tier="a", time_zone=zone, tiers={"a": Tier()}).days_ms(now_ms)


def test_a_day_begins_at_midnight_of_the_time_zone() -> None:
    noon = at("UTC", 2026, 11, 20, 12)

    utc = days("UTC", noon)
    assert utc == [at("UTC", 2026, 11, day) for day in (19, 20, 21, 22)]
    # It is the 20th in Berlin as well, and in Kiritimati already the 21st.
    assert days("Europe/Berlin", noon) == [midnight - HOUR_MS for midnight in utc]
    assert days("Pacific/Kiritimati", noon) == [midnight + 10 * HOUR_MS for midnight in utc]


def test_midnight_belongs_to_the_day_that_it_begins() -> None:
    midnight = at("Asia/Tokyo", 2026, 11, 20)

    assert days("Asia/Tokyo", midnight)[1] == midnight
    assert days("Asia/Tokyo", midnight - 1)[2] == midnight


def lengths_h(zone: str, now_ms: int) -> list[float]:
    midnights = days(zone, now_ms)
    return [(end - begin) / HOUR_MS for begin, end in pairwise(midnights)]


@pytest.mark.parametrize(
    ("zone", "date", "hours"),
    [
        ("Europe/Berlin", (2026, 3, 29), 23),
        ("Europe/Berlin", (2026, 10, 25), 25),
        ("America/New_York", (2026, 3, 8), 23),
        ("America/New_York", (2026, 11, 1), 25),
        ("Australia/Lord_Howe", (2026, 4, 5), 24.5),
        # Midnight itself is left out, and comes twice.
        ("Africa/Cairo", (2025, 4, 25), 23),
        ("America/Havana", (2025, 11, 2), 25),
        # Put back at midnight, into the day before, which so is the longer one.
        ("America/Asuncion", (2024, 3, 23), 25),
    ],
)
def test_a_day_is_longer_or_shorter_when_the_clocks_change(
    zone: str, date: tuple[int, int, int], hours: float
) -> None:
    noon = at(zone, *date, 12)
    assert lengths_h(zone, noon) == [24, hours, 24]
    # Seen from every hour of it, the day is the same.
    midnights = days(zone, noon)
    for now_ms in range(midnights[1], midnights[2], HOUR_MS // 2):
        assert days(zone, now_ms) == midnights


def test_a_date_that_a_zone_left_out_is_no_day() -> None:
    # Samoa went from the 29th of December 2011 to the 31st.
    assert lengths_h("Pacific/Apia", at("Pacific/Apia", 2011, 12, 29, 12)) == [24, 24, 24]
    eve, new_year = at("Pacific/Apia", 2011, 12, 29), at("Pacific/Apia", 2012, 1, 1)
    assert new_year - eve == 2 * DAY_MS


@given(
    any_zone,
    st.datetimes(datetime(2000, 1, 1), datetime(2037, 1, 1)).map(
        lambda when: int(when.replace(tzinfo=UTC).timestamp() * 1000)
    ),
)
def test_in_every_zone_there_are_two_midnights_on_each_side(zone: str, now_ms: int) -> None:
    midnights = days(zone, now_ms)

    assert len(midnights) == 4
    assert midnights[0] < midnights[1] <= now_ms < midnights[2] < midnights[3]
    for midnight in midnights:
        before, after = (
            datetime.fromtimestamp(ms / 1000, ZoneInfo(zone)).date()
            for ms in (midnight - 1, midnight)
        )
        assert before < after


@given(any_zone, st.integers(946_684_800, 2_114_380_800).map(lambda s: s * 1000))
def test_a_day_is_the_same_whenever_it_is_asked_for(zone: str, now_ms: int) -> None:
    _, begin, end, after = days(zone, now_ms)

    assert days(zone, begin)[1:3] == days(zone, end - 1)[1:3] == [begin, end]
    assert days(zone, end)[1:3] == [end, after]


def test_only_the_default_zone_needs_no_time_zone_data(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tzdata", None)
    try:
        zoneinfo.reset_tzpath(to=[])
        ZoneInfo.clear_cache()

        assert len(days("UTC", 365 * DAY_MS)) == 4
        with pytest.raises(ConfigError, match="line 2, time_zone: no time zone data here; install"):
            load_tiers(file)
    finally:
        zoneinfo.reset_tzpath()


# Edits


@dataclass
class Clock:
    now_s: float = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_edit_counts_within_a_second(
    file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quota.config_file")
    tiers = TierFile(file, clock)
    before = tiers.current

    file.write_text(GOOD.replace("weight: 4", "weight: 8"))
    clock.now_s += 0.9
    assert tiers.current is before
    clock.now_s += 0.2
    after = tiers.current

    assert after.tiers["pro"].weight == 8
    assert tiers.current is after
    assert (tiers.error, tiers.changed_at) == (None, clock.now_s)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_wrong_edit_changes_nothing_and_is_told_once(
    file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tiers = TierFile(file, clock)
    before, since = tiers.current, tiers.changed_at

    file.write_text(GOOD.replace("weight: 4", "weight: -4"))
    for _ in range(5):
        clock.now_s += 2
        assert tiers.current is before
    assert tiers.error is not None
    assert tiers.error.startswith(f"{file} line 11, tiers.pro.weight: ")
    assert tiers.changed_at == since
    assert [record.getMessage() for record in caplog.records] == [
        f"The tiers stay as they were: {tiers.error}"
    ]

    file.write_text(GOOD.replace("weight: 4", "weight: minus"))
    clock.now_s += 2
    assert tiers.current is before
    assert len(caplog.records) == 2

    file.write_text(GOOD.replace("weight: 4", "weight: 5"))
    clock.now_s += 2
    assert tiers.current.tiers["pro"].weight == 5
    assert tiers.error is None


def test_a_file_that_is_touched_is_the_same(file: Path, clock: Clock) -> None:
    tiers = TierFile(file, clock)
    before, since = tiers.current, tiers.changed_at

    os.utime(file, (1, 1))
    clock.now_s += 2

    assert tiers.current is before
    assert tiers.changed_at == since


def test_an_edit_that_keeps_size_and_time_is_noticed(file: Path, clock: Clock) -> None:
    tiers = TierFile(file, clock)
    was = file.stat()

    file.write_text(GOOD.replace("weight: 4", "weight: 7"))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    clock.now_s += 2

    assert tiers.current.tiers["pro"].weight == 7


def test_a_file_is_read_only_when_it_changed(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = TierFile(file, clock)
    file.write_text("wrong")
    looks, reads = 0, 0
    look, opened = Path.stat, Path.open

    def counted_stat(path: Path) -> os.stat_result:
        nonlocal looks
        looks += 1
        return look(path)

    def counted_open(path: Path, mode: str) -> object:
        nonlocal reads
        reads += 1
        return opened(path, mode)

    monkeypatch.setattr(Path, "stat", counted_stat)
    monkeypatch.setattr(Path, "open", counted_open)
    for _ in range(10):
        clock.now_s += 1
        for _ in range(100):
            assert tiers.current.default_tier == "free"

    assert (looks, reads) == (10, 1)


def test_a_link_swapped_on_the_way_is_an_edit(tmp_path: Path, clock: Clock) -> None:
    # As a Kubernetes ConfigMap is mounted, and updated.
    for name, weight in (("1st", 4), ("2nd", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiers.yaml").write_text(GOOD.replace("weight: 4", f"weight: {weight}"))
    os.utime(tmp_path / "1st" / "tiers.yaml", (5, 5))
    os.utime(tmp_path / "2nd" / "tiers.yaml", (5, 5))
    (tmp_path / "..data").symlink_to("1st")
    (tmp_path / "tiers.yaml").symlink_to(Path("..data") / "tiers.yaml")
    tiers = TierFile(tmp_path / "tiers.yaml", clock)
    assert tiers.current.tiers["pro"].weight == 4

    (tmp_path / "..data_tmp").symlink_to("2nd")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    clock.now_s += 1

    assert tiers.current.tiers["pro"].weight == 9


def test_a_file_that_goes_away_and_comes_back_is_the_same(
    file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tiers = TierFile(file, clock)
    before = tiers.current

    away = file.rename(file.with_suffix(".away"))
    for _ in range(3):
        clock.now_s += 1
        assert tiers.current is before
    assert tiers.error == f"cannot read the tiers in {file}: No such file or directory"
    assert len(caplog.records) == 1

    away.rename(file)
    clock.now_s += 1
    assert tiers.current is before
    assert tiers.error is None


def test_a_file_that_cannot_be_opened_for_a_moment_is_tried_again(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = TierFile(file, clock)
    file.write_text(GOOD.replace("weight: 4", "weight: 6"))

    def too_many_files(path: Path, mode: str) -> object:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Path, "open", too_many_files)
        clock.now_s += 1
        assert tiers.current.tiers["pro"].weight == 4
    assert tiers.error is not None
    clock.now_s += 1

    assert tiers.current.tiers["pro"].weight == 6
    assert tiers.error is None


def test_a_clock_that_is_put_back_does_not_hide_an_edit(file: Path, clock: Clock) -> None:
    tiers = TierFile(file, clock)
    file.write_text(GOOD.replace("weight: 4", "weight: 3"))

    clock.now_s -= 3600

    assert tiers.current.tiers["pro"].weight == 3


@pytest.mark.parametrize("what", ["nothing", "a folder", "a mistake"])
def test_without_a_good_file_there_is_no_start(tmp_path: Path, what: str) -> None:
    file = tmp_path / "tiers.yaml"
    if what == "a folder":
        file.mkdir()
    if what == "a mistake":
        file.write_text("tiers: {}\n")
    with pytest.raises(ConfigError, match=str(file)):
        TierFile(file)


# Settings, the route and the command line


def test_settings_name_a_file_of_ones_own(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    shipped = QuotaSettings().tiers_path
    assert shipped.name == "tiers.yaml"

    monkeypatch.setenv("REELSERVE_QUOTA_TIERS_FILE", "")
    assert QuotaSettings().tiers_path == shipped
    monkeypatch.setenv("REELSERVE_QUOTA_TIERS_FILE", str(file))
    assert QuotaSettings().tiers_path == file


def test_the_route_answers_what_is_in_force_and_what_is_wrong(file: Path, clock: Clock) -> None:
    app = FastAPI()
    app.state.services = SimpleNamespace(tiers=TierFile(file, clock))
    app.include_router(tiers.router)
    app.dependency_overrides[require_admin] = lambda: None
    file.write_text("default_tier: free\n")
    clock.now_s += 1

    answer = TestClient(app).get("/v1/admin/tiers").json()

    assert answer["error"] == f"{file} line 1, tiers: is missing"
    assert answer["changed_at"] == int(clock.now_s) - 1
    assert answer["time_zone"] == "Europe/Berlin"
    assert answer["tiers"]["free"]["surge"] == {"generations_per_day": 10, "class": "relaxed"}
    assert answer["tiers"]["pro"]["class"] == "burst"


def test_check_prints_what_each_tier_allows(file: Path) -> None:
    people = CliRunner().invoke(cli, ["tiers", "check", str(file)])
    machines = CliRunner().invoke(cli, ["tiers", "check", str(file), "--json"])

    rows = {row.split()[0]: row.split()[1:] for row in people.stdout.splitlines() if row.strip()}
    assert people.exit_code == 0
    assert rows["free*"] == ["pro"]
    assert rows["generations_per_day"] == ["30", "-"]
    assert rows["class"] == ["standard", "burst"]
    assert rows["surge.generations_per_day"] == ["10", "-"]
    assert "midnight, Europe/Berlin." in people.stdout
    assert json.loads(machines.stdout)["tiers"]["pro"]["weight"] == 4


def test_check_fails_with_the_mistake(file: Path) -> None:
    file.write_text(GOOD.replace("weight: 4", "weight: -4"))

    people = CliRunner().invoke(cli, ["tiers", "check", str(file)])
    machines = CliRunner().invoke(cli, ["tiers", "check", str(file), "--json"])

    assert (people.exit_code, people.stdout) == (1, "")
    assert people.stderr.startswith(f"reelserve: {file} line 11, tiers.pro.weight: should be gre")
    assert machines.exit_code == 1
    assert json.loads(machines.stdout)["error"]["code"] == "config_error"


def test_every_example_of_the_documentation_is_a_good_file(file: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "quotas.md"
    examples = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)

    assert len(examples) == 4
    for example in examples:
        file.write_text(example)
        load_tiers(file)


def test_every_field_is_explained_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quotas.md").read_text()
    for model in (Tiers, Tier):
        for name, field in model.model_fields.items():
            assert f"\n| `{field.alias or name}` | " in page
