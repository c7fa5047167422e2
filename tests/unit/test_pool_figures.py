"""Figures of a pool that are made of what Redis holds."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from serving.jobs import BUCKETS_S, Histogram, Starts


@pytest.mark.parametrize(
    ("latest_s", "expected"),
    [
        ([], None),
        ([3.0], 3.0),
        ([2.0, 5.0, 1.0], 5.0),
        ([float(n) for n in range(20, 0, -1)], 18.0),
    ],
)
def test_nine_of_ten_of_the_latest_starts_took_no_longer(
    latest_s: list[float], expected: float | None
) -> None:
    assert Starts(latest_s=latest_s).cold_start_s == expected


def test_the_buckets_are_those_that_the_scripts_fill() -> None:
    script = (files("serving.jobs") / "lua" / "_measures.lua").read_text()
    found = re.search(r"BUCKETS_S = {(.*)}", script)
    assert found
    assert tuple(map(float, found[1].split(","))) == BUCKETS_S
    assert max(BUCKETS_S) == 3600


def test_a_histogram_counts_what_is_in_its_buckets() -> None:
    assert Histogram([1, 2, *[0] * 13, 4]).count == 7
