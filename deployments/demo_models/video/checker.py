"""What a clip shows: colour, background, shape and motion, found by looking at its pixels.

Everything is compared with what the world would draw: colours with its palettes, outlines with
its shapes at the place and of the area of what is seen. A clip that shows nothing of the kind gets
None for what cannot be told.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
import torch

from deployments.demo_models.video.world import (
    BACKGROUNDS,
    COLOURS,
    DISTANCES,
    SHAPES,
    Rgb,
    Scene,
    caption,
)

Frames = np.ndarray
"""[frames, height, width, 3] uint8."""

TELLS = 60.0
"""RGB distance from the background at which a pixel may belong to the shape."""
AREA_MIN = 0.01
GROWS = 1.35
TRAVELS = 0.15
"""Of the shorter side: a motion over less is standing still."""
OVERLAP_MIN = 0.6


@dataclass(frozen=True)
class Seen:
    """None where a clip is too unlike anything there is to see."""

    colour: str | None
    shape: str | None
    motion: str | None
    background: str

    def right(self, scene: Scene) -> dict[str, bool]:
        """By attribute, and ``all``."""
        found = {
            name: getattr(self, name) == getattr(scene, name)
            for name in ("colour", "shape", "motion", "background")
        }
        return {**found, "all": all(found.values())}

    def __str__(self) -> str:
        """In the plain words of the world."""
        if self.colour is None or self.shape is None or self.motion is None:
            return "nothing that the demo model's world knows"
        return caption(Scene(self.colour, self.shape, self.motion, self.background))


def see(frames: Frames) -> Seen:
    """Look at a clip. Raises ``ValueError`` for anything but [frames, height, width, 3] uint8."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"a clip is uint8 [frames, height, width, 3], not {frames.shape}")
    pixels = frames.astype(np.float32)
    ground = np.median(_border(pixels), axis=0)
    background = _nearest(ground, BACKGROUNDS)
    apart = np.linalg.norm(pixels - ground, axis=-1)
    # Halfway between the background and the shape is its edge.
    strongest = np.quantile(apart, 0.995)
    masks = apart > max(TELLS, strongest / 2)
    areas = masks.mean(axis=(1, 2))
    if areas.min() < AREA_MIN:
        return Seen(None, None, None, background)
    inside = apart > 0.85 * strongest
    colour = _nearest(np.median(pixels[inside & masks], axis=0), COLOURS)
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    return Seen(colour, _shape(masks, centres), _motion(centres, areas, masks.shape), background)


def frames_of(file: bytes) -> Frames:
    """The pictures of a video file, uint8 [frames, height, width, 3]."""
    with av.open(io.BytesIO(file), "r") as container:
        return np.stack([each.to_ndarray(format="rgb24") for each in container.decode(video=0)])


def _border(pixels: np.ndarray) -> np.ndarray:
    edges = [pixels[:, :2], pixels[:, -2:], pixels[:, :, :2], pixels[:, :, -2:]]
    return np.concatenate([edge.reshape(-1, 3) for edge in edges])


def _nearest(colour: np.ndarray, palette: dict[str, Rgb]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(colour - palette[name])))


def _motion(centres: np.ndarray, areas: np.ndarray, shape: tuple[int, ...]) -> str:
    """From the first to the last sixth of the clip."""
    share = max(1, len(areas) // 6)
    grown = areas[-share:].mean() / areas[:share].mean()
    if grown > GROWS:
        return "growing"
    if grown < 1 / GROWS:
        return "shrinking"
    down, right = (centres[-share:].mean(axis=0) - centres[:share].mean(axis=0)) / min(shape[1:])
    if max(abs(down), abs(right)) < TRAVELS:
        return "still"
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def _shape(masks: np.ndarray, centres: np.ndarray) -> str | None:
    """The shape whose outline, at the same place and of the same area, overlaps the most."""
    picked = np.linspace(0, len(masks) - 1, 5).round().astype(int)
    overlaps = {
        name: float(np.mean([_overlap(name, masks[i], centres[i]) for i in picked]))
        for name in SHAPES
    }
    best = max(overlaps, key=lambda name: overlaps[name])
    return best if overlaps[best] >= OVERLAP_MIN else None


def _overlap(name: str, mask: np.ndarray, centre: np.ndarray) -> float:
    """Intersection over union."""
    ys, xs = (torch.from_numpy(axis).float() for axis in np.indices(mask.shape))
    trial = 0.25 * min(mask.shape)
    drawn = _outline(name, ys, xs, centre, trial)
    scale = (mask.sum() / drawn.sum()) ** 0.5
    # A triangle's centre is not quite that of its pixels.
    off = (np.argwhere(drawn).mean(axis=0) - centre) * scale
    drawn = _outline(name, ys, xs, centre - off, trial * scale)
    return float((drawn & mask).sum() / (drawn | mask).sum())


def _outline(
    name: str, ys: torch.Tensor, xs: torch.Tensor, centre: np.ndarray, unit: float
) -> np.ndarray:
    y, x = (ys - float(centre[0])) / unit, (xs - float(centre[1])) / unit
    inside: np.ndarray = (DISTANCES[name](x, y, torch.ones(())) < 0).numpy()
    return inside
