"""What a clip costs, in milli-credits: a pure function of its specification and the catalog."""

from __future__ import annotations

from serving.plan.catalog import Model
from serving.plan.clip import ClipSpec

MILLI = 1000
"""Milli-credits in a credit. Money is counted in integers only."""


def price(model: Model, spec: ClipSpec) -> int:
    """In proportion to length, pixels and steps, and for upscaling to length and pixels; rounded
    up, and not below the minimum."""
    table, limits = model.price, model.video
    width, height = limits.render_size(limits.default_size)
    default = width * height * limits.steps.default
    work = table.per_s * spec.steps
    if spec.upscale > 1 and model.upscaler is not None:
        work += model.upscaler.per_s * limits.steps.default
    asked = spec.render_width * spec.render_height * spec.seconds
    milli_credits = -(-work * asked // default)
    return max(table.minimum, milli_credits)
