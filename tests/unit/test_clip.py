"""A request becomes a complete specification, or an error that says what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from serving.plan.catalog import Model
from serving.plan.clip import SEED_MAX, ClipSpec
from serving.plan.errors import InvalidRequest
from serving.plan.estimate import POLL_MS_MAX, POLL_MS_MIN, poll_after_ms


def resolve(model: Model, **given: Any) -> ClipSpec:
    return ClipSpec.resolve(model, **{"prompt": "a red ball", "seed": 1, **given})


def test_defaults_are_filled_in(demo_model: Model) -> None:
    spec = resolve(demo_model)
    assert (spec.size, spec.seconds, spec.fps, spec.steps) == ("96x96", 4, 8, 20)
    assert spec.frames == 32
    assert spec.render_frames(4) == 33


def test_a_frontends_size_is_rendered_small_and_kept_as_output(demo_model: Model) -> None:
    spec = resolve(demo_model, size="1280x720")
    assert (spec.width, spec.height) == (1280, 720)
    assert (spec.render_width, spec.render_height) == (144, 80)


def test_an_upscaled_clip_is_rendered_as_it_was_and_delivered_larger(demo_model: Model) -> None:
    assert demo_model.upscaler is not None
    at = demo_model.upscaler.model_copy(update={"url": "triton.internal:8001"})
    model = demo_model.model_copy(update={"upscaler": at})
    spec = resolve(model, size="1280x720", upscale=2)
    assert spec.size == "2560x1440"
    assert spec.shape == resolve(model, size="1280x720").shape
    assert ClipSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_clip_that_is_not_upscaled_reads_as_it_did_before_any_was(demo_model: Model) -> None:
    text = resolve(demo_model).model_dump_json()
    assert "upscale" not in text
    assert ClipSpec.model_validate_json(text) == resolve(demo_model)


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": "x" * 2001}, "prompt", "at most 2000"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt", "at most 2000"),
        ({"size": "1x1"}, "size", "1280x720"),
        ({"seconds": 5}, "seconds", "Supported: 4, 1, 2, 8, 12"),
        ({"seconds": 0}, "seconds", "Supported"),
        ({"fps": 0}, "fps", "from 4 to 30"),
        ({"steps": 2001}, "steps", "from 1 to 2000"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "from 1.0 to 20.0"),
        ({"guidance_scale": 0.5}, "guidance_scale", "from 1.0 to 20.0"),
        ({"seed": -1}, "seed", "from 0"),
        ({"seed": SEED_MAX + 1}, "seed", str(SEED_MAX)),
    ],
)
def test_what_is_not_allowed_names_the_field_and_what_is(
    demo_model: Model, given: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(demo_model, **given)
    assert caught.value.param == param
    assert says in caught.value.message


def test_polling_follows_the_time_left_within_bounds() -> None:
    assert poll_after_ms(0) == POLL_MS_MIN
    assert poll_after_ms(12_000) == 1_000
    assert poll_after_ms(10**9) == POLL_MS_MAX
