"""How much work a clip is, in seconds of the device, and how long somebody will wait."""

from __future__ import annotations

from dataclasses import dataclass

from serving.plan.catalog import Model
from serving.plan.clip import ClipSpec

DRAIN_S_MIN = 10.0
"""Flushing a checkpoint and the last writes to Redis, on a busy machine."""

POLL_MS_MIN = 250
POLL_MS_MAX = 10_000
POLLS_PER_WAIT = 12
"""A client that keeps the first interval for its whole wait overshoots by at most a twelfth."""


@dataclass(frozen=True)
class Estimate:
    """Seconds each stage of a job is expected to take on an otherwise idle replica."""

    encode_s: float
    step_s: float
    steps: int
    decode_s: float
    deliver_s: float

    @property
    def device_s(self) -> float:
        """Seconds the device is busy: what fairness, price and scaling count."""
        return self.encode_s + self.step_s * self.steps + self.decode_s

    @property
    def total_s(self) -> float:
        return self.device_s + self.deliver_s

    @property
    def device_ms(self) -> int:
        return max(1, round(self.device_s * 1000))

    @property
    def total_ms(self) -> int:
        return max(1, round(self.total_s * 1000))


def estimate(model: Model, spec: ClipSpec) -> Estimate:
    """Work of ``spec`` from the catalog's cost table. Without guidance a step is half."""
    cost = model.cost
    rows = 2 if spec.guidance_scale > 1.0 else 1
    step_s = (cost.step_s + cost.step_s_per_ktoken * spec.tokens(model) / 1000) * rows / 2
    rendered = spec.render_width * spec.render_height
    rendered *= spec.render_frames(model.video.frame_multiple)
    return Estimate(
        encode_s=cost.encode_s,
        step_s=step_s,
        steps=spec.steps,
        decode_s=cost.decode_s_per_mpixel * rendered / 1e6,
        deliver_s=cost.deliver_s_per_mpixel * spec.width * spec.height * spec.frames / 1e6,
    )


def worst_case(model: Model) -> Estimate:
    """The longest stages any request for this model can have."""
    limits = model.video
    return max(
        (
            estimate(
                model,
                ClipSpec.resolve(
                    model,
                    prompt="x",
                    seed=0,
                    size=size,
                    seconds=max(limits.seconds),
                    fps=limits.fps.max,
                    guidance_scale=limits.guidance_scale.max,
                ),
            )
            for size in limits.sizes
        ),
        key=lambda cost: cost.step_s,
    )


def drain_s(model: Model) -> float:
    """How long a replica may take to hand its jobs back: the work it cannot break off, which is a
    step, a text encoding, or a decode in one piece; and a delivery that has begun.

    The margin is threefold, because estimates may be that wrong before anything was measured.
    """
    longest = worst_case(model)
    whole_decode_s = 0.0 if model.load.chunked_decode else longest.decode_s
    unbroken_s = max(longest.step_s, longest.encode_s, whole_decode_s)
    return DRAIN_S_MIN + 3 * (unbroken_s + longest.deliver_s)


def poll_after_ms(remaining_ms: int) -> int:
    """How long a client should wait before it asks again, given the time left."""
    return min(POLL_MS_MAX, max(POLL_MS_MIN, remaining_ms // POLLS_PER_WAIT))
