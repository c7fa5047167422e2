"""What a clip costs."""

from __future__ import annotations

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from deployments.settings import StackSettings
from serving.plan.catalog import Model, PriceTable
from serving.plan.clip import ClipSpec
from serving.plan.price import price

DEMO = StackSettings().catalog().resolve("demo-wan")


def priced(per_s: int, minimum: int = 0) -> Model:
    return DEMO.model_copy(update={"price": PriceTable(per_s=per_s, minimum=minimum)})


def clip(**changes: object) -> ClipSpec:
    spec = ClipSpec.resolve(DEMO, prompt="a ball", seed=1)
    return spec.model_copy(update=changes)


def test_a_second_at_the_default_size_and_steps_costs_what_the_catalog_says() -> None:
    assert price(priced(1700), clip(seconds=1)) == 1700
    assert price(priced(1700), clip(seconds=3)) == 5100


def test_upscaling_costs_by_the_second_and_not_by_steps() -> None:
    assert DEMO.upscaler is not None
    per_s = DEMO.upscaler.per_s
    for steps in (DEMO.video.steps.default, 2 * DEMO.video.steps.default):
        plain = price(priced(1700), clip(seconds=3, steps=steps))
        assert price(priced(1700), clip(seconds=3, steps=steps, upscale=2)) == plain + 3 * per_s


def test_no_clip_costs_less_than_the_minimum() -> None:
    assert price(priced(10, minimum=500), clip(seconds=1)) == 500
    assert price(priced(0), clip()) == 0


@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.integers(1, 64),
    st.integers(1, 64),
    st.integers(1, 100),
)
def test_it_is_in_proportion_to_length_pixels_and_steps_rounded_up(
    per_s: int, seconds: int, wide: int, high: int, steps: int
) -> None:
    spec = clip(seconds=seconds, render_width=16 * wide, render_height=16 * high, steps=steps)
    width, height = DEMO.video.render_size(DEMO.video.default_size)
    share = Fraction(256 * wide * high * steps, width * height * DEMO.video.steps.default)
    assert price(priced(per_s), spec) == math.ceil(per_s * seconds * share)
