"""How waits are written: for programs as OpenAI does, for people in words."""

from __future__ import annotations

import pytest

from serving.api.quota import duration
from serving.api.refusals import span


@pytest.mark.parametrize(
    ("ms", "written"),
    [
        (-5, "0ms"),
        (0, "0ms"),
        (120, "120ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1001, "2s"),
        (59_001, "1m0s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (25_400_000, "7h3m20s"),
        (90_000_000, "25h0m0s"),
    ],
)
def test_a_duration_is_rounded_up_and_has_no_leading_zeros(ms: int, written: str) -> None:
    assert duration(ms) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "1 s"),
        (0.2, "1 s"),
        (11.1, "12 s"),
        (119, "119 s"),
        (119.5, "2 min"),
        (7140, "119 min"),
        (7141, "2 h 0 min"),
        (25_400, "7 h 4 min"),
    ],
)
def test_a_wait_in_words_is_rounded_up(seconds: float, written: str) -> None:
    assert span(seconds) == written
