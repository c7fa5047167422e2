"""The step scheduler: one thread owns the device and advances clips one step at a time.

Everything happens at a step boundary: clips join, stop and leave there, and only there.
Pure torch over a family: no Ray, no Redis, no HTTP; what it has to say, it says in events.
"""

from serving.engine.engine import Engine
from serving.engine.events import (
    Began,
    Decoded,
    Event,
    Failed,
    FramesReady,
    Stepped,
    Stopped,
)

__all__ = [
    "Began",
    "Decoded",
    "Engine",
    "Event",
    "Failed",
    "FramesReady",
    "Stepped",
    "Stopped",
]
