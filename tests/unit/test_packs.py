"""What a pack says, where a file of packs is wrong, and how an edit comes into force."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.packs import Pack, PackFile, Packs, load_packs
from quota.settings import QuotaSettings
from serving.plan.catalog import Model
from serving.plan.clip import ClipSpec
from serving.plan.errors import ConfigError
from serving.plan.price import MILLI, price

GOOD = """\
currency: eur
packs:
  extra-10:
    title: 10 extra generations
    credits: 12.345
    price_minor: 400
    expires_days: 365
  forever:
    title: 1 credit
    credits: 1
    price_minor: 50
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "packs.yaml"
    made.write_text(GOOD)
    return made


def test_fields_are_read_as_they_are_written(file: Path) -> None:
    assert load_packs(file) == Packs(
        currency="eur",
        packs={
            "extra-10": Pack(
                title="10 extra generations", credits=12.345, price_minor=400, expires_days=365
            ),
            "forever": Pack(title="1 credit", credits=1, price_minor=50, expires_days=None),
        },
    )


def test_the_shipped_pack_is_as_many_clips_as_it_says(demo_model: Model) -> None:
    shipped = load_packs(QuotaSettings().packs_path)
    clip = price(demo_model, ClipSpec.resolve(demo_model, prompt="a ball", seed=1))

    for name, pack in shipped.packs.items():
        number = int(name.removeprefix("extra-"))
        assert pack.title == f"{number} extra generations"
        assert pack.milli_credits == number * clip
    assert "extra-10" in shipped.packs


@given(st.integers(1, 10**12))
def test_credits_are_counted_without_rounding(milli: int) -> None:
    pack = Pack(title="t", credits=milli / MILLI, price_minor=1)
    assert pack.milli_credits == milli


def test_there_may_be_nothing_for_sale(file: Path) -> None:
    file.write_text("packs: {}\n")
    assert load_packs(file).packs == {}


NO_FIELD = "no such field; there are "


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("credits: 1\n", "credits: 0\n", "line 10, packs.forever.credits: should be greater than"),
        ("credits: 1\n", "credits: -3\n", "line 10, packs.forever.credits: should be greater than"),
        ("credits: 1\n", "credits: .nan\n", "line 10, packs.forever.credits: should be a finite"),
        ("credits: 1\n", "credits: .inf\n", "line 10, packs.forever.credits: should be "),
        (
            "credits: 1\n",
            "credits: 1e10\n",
            "line 10, packs.forever.credits: should be a valid num",
        ),
        ("credits: 1\n", "credits: 1.0e+10\n", "line 10, packs.forever.credits: should be less"),
        (
            "credits: 1\n",
            "credits: 1.0001\n",
            "line 10, packs.forever.credits: has more than three",
        ),
        ("credits: 1\n", "credits: yes\n", "line 10, packs.forever.credits: should be a valid"),
        ("credits: 1\n", "credits: '1'\n", "line 10, packs.forever.credits: should be a valid num"),
        ("credits: 1\n", "credits:\n", "line 10, packs.forever.credits: has no value"),
        ("credits: 1\n", "credit: 1\n", "line 8, packs.forever.credits: is missing; li"),
        ("title: 1 credit", "title: ''", "line 9, packs.forever.title: String should have at lea"),
        ("title: 1 credit", "title: 1", "line 9, packs.forever.title: should be a valid string"),
        ("title: 1 credit", f"title: {'x' * 101}", "line 9, packs.forever.title: String should ha"),
        ("title: 1 credit", "name: x", "line 8, packs.forever.title: is missing; line 9, packs.f"),
        ("title: 1 credit", "credits: 2", "line 10, packs.forever.credits: given twice, first in"),
        ("price_minor: 50", "price_minor: 0", "line 11, packs.forever.price_minor: should be gre"),
        ("price_minor: 50", "price_minor: 0.5", "line 11, packs.forever.price_minor: should be a"),
        ("price_minor: 50", "price_minor: 1_00_000_000_0", "line 11, packs.forever.price_minor: "),
        ("price_minor: 50", "price: 0.50", "line 8, packs.forever.price_minor: is missing; line 1"),
        ("expires_days: 365", "expires_days: 0", "line 7, packs.extra-10.expires_days: should be"),
        ("expires_days: 365", "expires_days: 1.5", "line 7, packs.extra-10.expires_days: should "),
        ("expires_days: 365", "expires_days: 9999", "line 7, packs.extra-10.expires_days: should"),
        ("expires_days: 365", "expires: 365", f"line 7, packs.extra-10.expires: {NO_FIELD}title,"),
        ("currency: eur", "currency: EUR", "line 1, currency: String should match pattern"),
        ("currency: eur", "currency: euro", "line 1, currency: String should match pattern"),
        ("currency: eur", "currency: no", "line 1, currency: should be a valid string"),
        ("currency: eur", "curency: eur", f"line 1, curency: {NO_FIELD}currency, packs"),
        ("  forever:", "  for ever:", "line 8, packs.for ever: String should match pattern"),
        ("  forever:", "  extra-10:", "line 8, packs.extra-10: given twice, first in line 3"),
        ("packs:\n", "packs: {}\nrest:\n", f"line 3, rest: {NO_FIELD}currency, packs"),
        (GOOD, "currency: eur\n", "line 1, packs: is missing"),
        (GOOD, "packs: [a]\n", "line 1, packs: must be fields, each with a name and a value"),
        (GOOD, "packs: {a: 1}\n", "line 1, packs.a: must be fields, each with a name and a value"),
        (GOOD, "", "line 1: the file is empty"),
        (GOOD, "packs: {", "line 1: not YAML: while parsing a flow"),
    ],
)
def test_a_mistake_is_told_with_its_file_line_and_field(
    file: Path, was: str, becomes: str, told: str
) -> None:
    assert was in GOOD
    file.write_text(GOOD.replace(was, becomes, 1))

    with pytest.raises(ConfigError) as caught:
        load_packs(file)

    assert caught.value.message.startswith(f"{file} {told}")
    assert "\n" not in caught.value.message


def test_an_edit_counts_within_a_second_and_a_mistake_changes_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 1_790_000_000.0
    packs = PackFile(file, lambda: now_s)
    before = packs.current

    file.write_text(GOOD.replace("price_minor: 50", "price_minor: 60"))
    now_s += 0.9
    assert packs.current is before
    now_s += 0.2
    assert packs.current.packs["forever"].price_minor == 60
    assert packs.changed_at == now_s

    file.write_text(GOOD.replace("price_minor: 50", "price_minor: minus"))
    now_s += 2
    assert packs.current.packs["forever"].price_minor == 60
    assert packs.error is not None
    assert packs.error.startswith(f"{file} line 11, packs.forever.price_minor: ")
    assert f"The packs stay as they were: {packs.error}" in caplog.text


def test_without_a_good_file_there_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the packs in .*: No such file"):
        PackFile(tmp_path / "packs.yaml")


def test_settings_name_a_file_of_ones_own(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    shipped = QuotaSettings().packs_path
    assert shipped.name == "packs.yaml"

    monkeypatch.setenv("REELSERVE_QUOTA_PACKS_FILE", "")
    assert QuotaSettings().packs_path == shipped
    monkeypatch.setenv("REELSERVE_QUOTA_PACKS_FILE", str(file))
    assert QuotaSettings().packs_path == file


def test_every_field_is_explained_and_every_example_is_good(file: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "credits.md").read_text()
    for model in (Packs, Pack):
        for name in model.model_fields:
            assert f"\n| `{name}` | " in page
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert examples
    for example in examples:
        file.write_text(example)
        load_packs(file)
