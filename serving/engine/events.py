"""What the engine tells the outside about a run.

In order: ``Began``, ``Stepped`` for each step, ``FramesReady`` for each decoded chunk,
``Decoded``. ``Stopped`` or ``Failed`` may come instead of any of them and is then the last.
Durations are seconds on the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.models.family import Frames


@dataclass(frozen=True)
class Began:
    """The prompt is encoded and the noise is drawn."""

    run_id: str
    encode_s: float


@dataclass(frozen=True)
class Stepped:
    """``step`` steps are done; ``step_s`` is what this one took."""

    run_id: str
    step: int
    step_s: float


@dataclass(frozen=True)
class FramesReady:
    """The next chunk of pictures, uint8 [frames, height, width, 3]."""

    run_id: str
    frames: Frames


@dataclass(frozen=True)
class Decoded:
    """Every frame was handed out. ``denoise_s`` and ``decode_s`` are the stages' sums."""

    run_id: str
    denoise_s: float
    decode_s: float


@dataclass(frozen=True)
class Stopped:
    """The run was dropped at a step boundary because :meth:`Engine.stop` was called."""

    run_id: str


@dataclass(frozen=True)
class Failed:
    """The run raised; the engine and its other runs go on."""

    run_id: str
    error: Exception


Event = Began | Stepped | FramesReady | Decoded | Stopped | Failed
"""Any of them."""
