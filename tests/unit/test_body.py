"""Bodies as the SDKs send them."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api.body import unflatten, validate
from serving.api.schemas import VideoCreate
from serving.plan.errors import InvalidRequest


@pytest.mark.parametrize(
    ("pairs", "fields"),
    [
        ([("prompt", "x"), ("seconds", "4")], {"prompt": "x", "seconds": "4"}),
        ([("a[b]", "1"), ("a[c]", "2")], {"a": {"b": "1", "c": "2"}}),
        ([("a[b][c]", "1")], {"a": {"b": {"c": "1"}}}),
        ([("a[]", "1"), ("a[]", "2")], {"a": ["1", "2"]}),
        (
            [("r[][x]", "1"), ("r[][y]", "2"), ("r[][x]", "3")],
            {"r": [{"x": "1", "y": "2"}, {"x": "3"}]},
        ),
        ([("odd]name", "1")], {"odd]name": "1"}),
    ],
)
def test_bracketed_keys_nest(pairs: list[tuple[str, str]], fields: dict[str, Any]) -> None:
    assert unflatten(pairs) == fields


@pytest.mark.parametrize(
    "pairs",
    [
        [("a", "1"), ("a", "2")],
        [("a", "1"), ("a[b]", "2")],
        [("a[b]", "1"), ("a[]", "2")],
        [("a[]", "1"), ("a[b]", "2")],
        [("a[b][c][d][e][f]", "1")],
    ],
)
def test_a_field_in_two_shapes_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest):
        unflatten(pairs)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_parameter", "prompt"),
        ({"prompt": "x", "promt": "y"}, "unknown_parameter", "promt"),
        ({"prompt": "x", "input_reference": {"image_url": "y"}}, "unknown_parameter", None),
        ({"prompt": 3}, "invalid_value", "prompt"),
        ({"prompt": "\ud800"}, "invalid_value", "prompt"),
        ({"prompt": "x", "steps": True}, "invalid_value", "steps"),
        ({"prompt": "x", "steps": "many"}, "invalid_value", "steps"),
        ({"prompt": "x", "seconds": 4.5}, "invalid_value", "seconds"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], code: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(VideoCreate, fields)
    assert caught.value.code == code
    assert param is None or caught.value.param == param


@pytest.mark.parametrize("seconds", [8, "8"])
def test_seconds_is_a_number_or_a_string(seconds: object) -> None:
    assert validate(VideoCreate, {"prompt": "x", "seconds": seconds}).seconds == 8
