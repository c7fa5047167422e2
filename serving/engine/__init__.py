"""The step scheduler: one thread owns the device and advances clips one step at a time.

Everything happens at a step boundary: clips join, stop, are saved and leave there, and only there.
Pure torch over a family: no Ray, no Redis, no HTTP; what it has to say, it says in events.
"""

from serving.engine.checkpoint import Snapshot, pack, unpack
from serving.engine.engine import Engine, EngineClosed
from serving.engine.events import (
    Began,
    Decoded,
    Denoised,
    Dropped,
    Event,
    Failed,
    FramesReady,
    Previewed,
    Saved,
    Stepped,
    Yielded,
)

__all__ = [
    "Began",
    "Decoded",
    "Denoised",
    "Dropped",
    "Engine",
    "EngineClosed",
    "Event",
    "Failed",
    "FramesReady",
    "Previewed",
    "Saved",
    "Snapshot",
    "Stepped",
    "Yielded",
    "pack",
    "unpack",
]
