"""What the engine tells the outside about a run.

In order: ``Began``, ``Stepped`` for each step, ``Denoised``, ``FramesReady`` for each decoded
chunk, ``Decoded``. ``Saved`` and ``Previewed`` may come at any step boundary. ``Yielded``,
``Dropped`` or ``Failed`` may come instead of any of them and is then the last.
Durations are seconds on the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.engine.checkpoint import Snapshot
from serving.models.family import Frames
from serving.models.previews import Picture


@dataclass(frozen=True)
class Began:
    """The prompt is encoded; ``step`` is 0, or where a snapshot goes on."""

    run_id: str
    encode_s: float
    step: int


@dataclass(frozen=True)
class Stepped:
    """``step`` steps are done; ``step_s`` is what this one took, in a forward that carried ``rows``
    rows of this run and of those that shared it. Of these, one ``leads``."""

    run_id: str
    step: int
    step_s: float
    rows: int
    leads: bool


@dataclass(frozen=True)
class Saved:
    """A snapshot on schedule. There is no other until :meth:`Engine.kept` was called for it."""

    run_id: str
    snapshot: Snapshot


@dataclass(frozen=True)
class Previewed:
    """What the clip will show, seen after ``step`` steps: uint8 [height, width, 3], RGB, small."""

    run_id: str
    step: int
    picture: Picture


@dataclass(frozen=True)
class Denoised:
    """Every step is done. The run waits until :meth:`Engine.kept` says that this is safe."""

    run_id: str
    snapshot: Snapshot
    denoise_s: float


@dataclass(frozen=True)
class FramesReady:
    """The next chunk of pictures, uint8 [frames, height, width, 3]."""

    run_id: str
    frames: Frames


@dataclass(frozen=True)
class Decoded:
    """Every frame was handed out."""

    run_id: str
    decode_s: float


@dataclass(frozen=True)
class Yielded:
    """The run left at a boundary because it was asked to; None if it had done nothing yet."""

    run_id: str
    snapshot: Snapshot | None


@dataclass(frozen=True)
class Dropped:
    """The run left at a boundary and nobody wants its state."""

    run_id: str


@dataclass(frozen=True)
class Failed:
    """The run raised; the engine and its other runs go on."""

    run_id: str
    error: Exception


Event = (
    Began
    | Stepped
    | Saved
    | Previewed
    | Denoised
    | FramesReady
    | Decoded
    | Yielded
    | Dropped
    | Failed
)
"""Any of them."""
