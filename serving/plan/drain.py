"""How long a replica may take to leave."""

from __future__ import annotations

from collections.abc import Iterable

from serving.plan.catalog import Model
from serving.plan.clip import UPSCALE, ClipSpec
from serving.plan.costs import CostModel
from serving.plan.estimate import Estimate

DRAIN_S_MIN = 10.0
"""Flushing a checkpoint and the last writes to Redis, on a busy machine."""
MARGIN = 3
"""Estimates may be that wrong before anything was measured."""
LEARNED_S_MAX = 1800.0
"""No measurement makes a rollout wait longer than this for a replica that hangs."""


def worst_case(costs: CostModel) -> Estimate:
    """The longest each stage can be, over every request the model takes."""
    limits = costs.model.video
    longest = [
        costs.estimate(
            ClipSpec.resolve(
                costs.model,
                prompt="x",
                seed=0,
                size=size,
                seconds=max(limits.seconds),
                fps=limits.fps.max,
                steps=limits.steps.max,
                guidance_scale=limits.guidance_scale.max,
                upscale=UPSCALE if costs.model.upscales else None,
            )
        )
        for size in limits.sizes
    ]
    return Estimate(
        encode_s=costs.encode_s,
        step_s=max(each.step_s for each in longest),
        steps=limits.steps.max,
        decode_s=max(each.decode_s for each in longest),
        deliver_s=max(each.deliver_s for each in longest),
        upscale_s=max(each.upscale_s for each in longest),
    )


def drain_s(model: Model, learned: Iterable[CostModel] = ()) -> float:
    """How long a replica may take to hand its jobs back: the work it cannot break off, which is a
    step, a text encoding, a decode in one piece, or a few frames at an upscaler; and a delivery
    that has begun.

    By the catalog's table, or longer where what was learned says so. Never shorter: a measurement
    that is far too low would cost jobs their last steps. One that is far too high costs time only
    where a replica hangs, and that is bounded.
    """
    by_measure = max((_drain_s(costs) for costs in learned), default=0.0)
    return max(_drain_s(CostModel(model)), min(LEARNED_S_MAX, by_measure))


def _drain_s(costs: CostModel) -> float:
    longest = worst_case(costs)
    whole_decode_s = 0.0 if costs.model.load.chunked_decode else longest.decode_s
    unbroken_s = max(longest.step_s, longest.encode_s, whole_decode_s, _request_s(costs, longest))
    return DRAIN_S_MIN + MARGIN * (unbroken_s + longest.deliver_s)


def _request_s(costs: CostModel, longest: Estimate) -> float:
    """What an upscaler takes for the frames of one request."""
    limits, seat = costs.model.video, costs.model.upscaler
    frames = max(limits.seconds) * limits.fps.max
    return longest.upscale_s * min(1.0, seat.frames / frames) if seat else 0.0
