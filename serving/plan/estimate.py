"""How much work a clip is, in seconds of the device, and how long somebody will wait."""

from __future__ import annotations

from dataclasses import dataclass

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
    upscale_s: float = 0.0
    """On a model server, so it is none of the device's time."""

    @property
    def device_s(self) -> float:
        """Seconds the device is busy: what fairness, price and scaling count."""
        return self.encode_s + self.step_s * self.steps + self.decode_s

    @property
    def total_s(self) -> float:
        return self.device_s + self.upscale_s + self.deliver_s

    def left_share(self, step: int) -> float:
        """The part of the device's work that ``step`` done steps leave."""
        return 1.0 - self.step_s * min(step, self.steps) / self.device_s

    @property
    def device_ms(self) -> int:
        return max(1, round(self.device_s * 1000))

    @property
    def total_ms(self) -> int:
        return max(1, round(self.total_s * 1000))


def poll_after_ms(remaining_ms: int) -> int:
    """How long a client should wait before it asks again, given the time left."""
    return min(POLL_MS_MAX, max(POLL_MS_MIN, remaining_ms // POLLS_PER_WAIT))
