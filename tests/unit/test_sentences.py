"""A text's sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.plan.sentences import sentences, speakable


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("No full stop", ["No full stop"]),
        ("Mr. Smith met Dr. Jones. They spoke.", ["Mr. Smith met Dr. Jones.", "They spoke."]),
        ("It costs 3.50 euros. Cheap.", ["It costs 3.50 euros.", "Cheap."]),
        ("J. S. Bach was here. So was I. Yes.", ["J. S. Bach was here.", "So was I.", "Yes."]),
        ("Fruit, e.g. Apples, is good.", ["Fruit, e.g. Apples, is good."]),
        ("1. First\n\n2. Second", ["1. First", "2. Second"]),
        ("“Go!” he said. “Why?” Nobody knew.", ["“Go!” he said.", "“Why?”", "Nobody knew."]),
        ("Well… perhaps. Or not...", ["Well… perhaps.", "Or not..."]),
        ("A title\n\nAnd a text", ["A title", "And a text"]),
        ("One line\nand the next", ["One line and the next"]),
        ("今日は。元気ですか？はい。", ["今日は。", "元気ですか？", "はい。"]),
        ("Das ist z.B. Wien. Ja.", ["Das ist z.B. Wien.", "Ja."]),
        ("... !!! 🙂", []),
        ("  ", []),
    ],
)
def test_a_text_is_split_where_a_reader_would_pause(text: str, found: list[str]) -> None:
    assert sentences(text) == found


def test_what_is_too_long_is_split_after_a_comma_else_after_a_word_else_anywhere() -> None:
    assert sentences("one two, three four five", 12) == ["one two,", "three four", "five"]
    assert sentences("one two three four", 9) == ["one two", "three", "four"]
    assert sentences("abcdefghij", 4) == ["abcd", "efgh", "ij"]


@given(st.text(max_size=400), st.integers(1, 60))
def test_nothing_that_can_be_said_is_lost_and_nothing_is_too_long(text: str, most: int) -> None:
    found = sentences(text, most)
    assert all(0 < len(each) <= most for each in found)
    assert [c for c in "".join(found) if c.isalnum()] == [c for c in text if c.isalnum()]


@given(st.text(max_size=200))
def test_there_is_a_sentence_where_there_is_something_to_say(text: str) -> None:
    assert bool(sentences(text)) == speakable(text)
