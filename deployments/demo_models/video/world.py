"""A world of coloured shapes that move on plain backgrounds: scenes, captions and pictures.

A :class:`Scene` is what a caption says; a :class:`Take` is what it leaves open, such as where the
shape begins. Together they are a clip, drawn by signed distances so that edges are smooth at any
size.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cache

import torch

Rgb = tuple[int, int, int]
Path = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""x, y and radius, each [frames]."""

COLOURS: dict[str, Rgb] = {
    "red": (220, 35, 40),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 40),
    "green": (35, 165, 60),
    "cyan": (50, 215, 225),
    "blue": (40, 75, 225),
    "purple": (135, 45, 175),
    "pink": (250, 135, 195),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "grey": (128, 128, 128),
    "brown": (105, 70, 40),
}
SHAPES = ("ball", "square", "triangle", "star", "ring")
MOTIONS = ("right", "left", "up", "down", "growing", "shrinking", "still")

HELD_OUT_IN = 5
"""One combination in five is never seen in training."""


@dataclass(frozen=True)
class Scene:
    colour: str
    shape: str
    motion: str
    background: str

    @property
    def held_out(self) -> bool:
        """By its name alone, so that it is the same for everybody for ever."""
        digest = hashlib.sha256(" ".join(astuple(self)).encode()).digest()
        return digest[0] % HELD_OUT_IN == 0


@cache
def scenes(*, held_out: bool) -> tuple[Scene, ...]:
    every = itertools.starmap(Scene, itertools.product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS))
    return tuple(scene for scene in every if scene.held_out == held_out)


# What things are called. The first of each is the plain name.

COLOUR_WORDS = {
    "red": ("red", "scarlet", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
}
BACKGROUND_WORDS = {
    "white": ("white", "snowy"),
    "black": ("black", "dark"),
    "grey": ("grey", "gray"),
    "brown": ("brown", "chocolate"),
}
SHAPE_WORDS = {
    "ball": ("ball", "circle", "disc"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star",),
    "ring": ("ring", "hoop", "donut"),
}
MOTION_WORDS = {
    "right": (
        "moving right",
        "moving to the right",
        "moves right",
        "sliding to the right",
        "going right",
        "travelling from left to right",
    ),
    "left": (
        "moving left",
        "moving to the left",
        "moves left",
        "sliding to the left",
        "going left",
        "travelling from right to left",
    ),
    "up": ("moving up", "moving upwards", "moves up", "rising", "going up", "floating up"),
    "down": ("moving down", "moving downwards", "moves down", "falling", "going down", "sinking"),
    "growing": ("growing", "getting bigger", "getting larger", "grows", "expanding"),
    "shrinking": ("shrinking", "getting smaller", "shrinks", "contracting"),
    "still": ("standing still", "not moving", "resting", "staying still", "motionless"),
}
TEMPLATES = (
    "{a} {colour} {shape} {motion} on {b} {background} background",
    "{a} {colour} {shape} {motion} on {b} {background} background",
    "{a} {colour} {shape} {motion} against {b} {background} backdrop",
    "{a} {colour} {shape} is {motion} in front of {b} {background} wall",
    "on {b} {background} background, {a} {colour} {shape} {motion}",
    "a video of {a} {colour} {shape} {motion} on {background}",
    "{colour} {shape} {motion}, {background} background",
    "{colour} {shape}, {motion}, {background}",
)


def caption(scene: Scene, draw: random.Random | None = None) -> str:
    """What one would ask for to get this scene: plainly, or in words that ``draw`` picks."""

    def word(choices: Sequence[str]) -> str:
        return choices[0] if draw is None else draw.choice(choices)

    return _fill(
        word(TEMPLATES),
        word(COLOUR_WORDS[scene.colour]),
        word(SHAPE_WORDS[scene.shape]),
        word(MOTION_WORDS[scene.motion]),
        word(BACKGROUND_WORDS[scene.background]),
    )


def every_caption() -> Iterator[str]:
    """Captions with every word and every template among them."""
    words = [
        [word for words in each.values() for word in words]
        for each in (COLOUR_WORDS, SHAPE_WORDS, MOTION_WORDS, BACKGROUND_WORDS, {"": TEMPLATES})
    ]
    for n in range(max(map(len, words))):
        colour, shape, motion, background, template = (each[n % len(each)] for each in words)
        yield _fill(template, colour, shape, motion, background)


def _fill(template: str, colour: str, shape: str, motion: str, background: str) -> str:
    return template.format(
        a=_article(colour),
        b=_article(background),
        colour=colour,
        shape=shape,
        motion=motion,
        background=background,
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# Takes and pictures. Lengths are in shares of the frame's shorter side, y points down.

RADIUS = 0.19
TRAVEL = 0.28
"""How far from the middle a shape begins and ends, as a share of the side that it moves along."""
GROWTH = 1.45
"""How much wider than the take's radius a growing shape ends, and how much smaller it begins."""


@dataclass(frozen=True)
class Take:
    """What a caption leaves open. ``x`` and ``y`` shift the path."""

    x: float
    y: float
    radius: float

    @classmethod
    def drawn(cls, draw: random.Random) -> Take:
        return cls(
            x=draw.uniform(-0.09, 0.09),
            y=draw.uniform(-0.09, 0.09),
            radius=RADIUS * draw.uniform(0.88, 1.12),
        )


@dataclass(frozen=True)
class Clip:
    scene: Scene
    take: Take


def drawn_clip(draw: random.Random, *, held_out: bool = False) -> Clip:
    return Clip(draw.choice(scenes(held_out=held_out)), Take.drawn(draw))


def render(clips: Sequence[Clip], frames: int, height: int, width: int) -> torch.Tensor:
    """[clips, 3, frames, height, width] float32 from -1 to 1."""
    made = []
    for clip in clips:
        along = path(clip, frames, height, width)
        covers = cover(clip.scene.shape, along, (0, 0, height, width), min(height, width))
        shape, ground = (
            torch.tensor(colour).view(3, 1, 1, 1) / 127.5 - 1
            for colour in (COLOURS[clip.scene.colour], BACKGROUNDS[clip.scene.background])
        )
        made.append(torch.lerp(ground, shape, covers))
    return torch.stack(made)


def cover(shape: str, along: Path, window: tuple[int, int, int, int], short: int) -> torch.Tensor:
    """How much of each pixel is the shape's, from 0 to 1: [frames, height, width] of a ``window``
    (top, left, height, width) of the frames, whose shorter side is ``short`` pixels."""
    top, left, height, width = window
    ys = (torch.arange(top, top + height) + 0.5).view(-1, 1) / short
    xs = (torch.arange(left, left + width) + 0.5).view(1, -1) / short
    x, y, radius = (each.view(-1, 1, 1) for each in along)
    return (0.5 - DISTANCES[shape](xs - x, ys - y, radius) * short).clamp(0, 1)


def path(clip: Clip, frames: int, height: int, width: int) -> Path:
    """Where the shape is and its radius, each [frames], in shares of the shorter side."""
    short = min(height, width)
    middle = (width / short / 2, height / short / 2)
    done = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    to_and_fro, still = 2 * done - 1, torch.zeros(frames)
    motion = clip.scene.motion
    along = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    x = middle[0] + clip.take.x + to_and_fro * along[0] * TRAVEL * width / short
    y = middle[1] + clip.take.y + to_and_fro * along[1] * TRAVEL * height / short
    exponent = {"growing": to_and_fro, "shrinking": -to_and_fro}.get(motion, still)
    return x, y, clip.take.radius * torch.as_tensor(GROWTH) ** exponent


def _ball(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    return torch.hypot(x, y) - radius


def _square(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86 * radius


def _triangle(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Equilateral, a corner up; its centre is the point in which its medians meet."""
    inner = 0.62 * radius
    return torch.maximum(math.sqrt(0.75) * x.abs() - 0.5 * y, y) - inner


def _star(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Five points, one up."""
    tip, dent, half = 1.25 * radius, 0.52 * radius, math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (angle + half).remainder(2 * half) - half
    along, across = torch.hypot(x, y) * folded.cos(), torch.hypot(x, y) * folded.sin().abs()
    # The edge from the tip, on the axis, to the dent, half a point further.
    edge = (dent * math.cos(half) - tip, dent * math.sin(half))
    length = torch.hypot(edge[0], edge[1])
    return ((along - tip) * edge[1] - across * edge[0]) / length


def _ring(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    return (torch.hypot(x, y) - 0.78 * radius).abs() - 0.27 * radius


DISTANCES = {
    "ball": _ball,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
}
"""Signed distance to the edge, negative inside, by shape."""
