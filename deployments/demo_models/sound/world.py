"""The sounds of the demo world: five kinds, each with a few attributes ("axes").

A sound is a kind and one value on each of its axes. Some combinations are held out: training
never hears them, and measuring asks for nothing else. Every value of an axis, and every pair of
values that is held out of three, is heard in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

SAMPLING_RATE_HZ = 8_000
DURATION_S_MIN = 1.5
DURATION_S_MAX = 3.072
"""Every sound fits the shorter and makes sense at the longer."""

SHARES = {"tone": 0.1, "glide": 0.3, "beeps": 0.25, "drum": 0.2, "noise": 0.15}
"""Of the kinds among what is trained on: what moves takes longer to learn."""
LOUDNESS = ("soft", "loud")
PITCHES = ("low", "middle", "high")
AXES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "tone": {"pitch": PITCHES, "loudness": LOUDNESS},
    "glide": {
        "direction": ("rising", "falling"),
        "pace": ("slow", "quick"),
        "loudness": LOUDNESS,
    },
    "beeps": {"count": ("1", "2", "3", "4"), "pitch": PITCHES, "loudness": LOUDNESS},
    "drum": {"size": ("big", "small"), "tempo": ("slow", "fast"), "loudness": LOUDNESS},
    "noise": {
        "colour": ("hiss", "rumble"),
        "shape": ("steady", "swelling", "fading"),
        "loudness": LOUDNESS,
    },
}


@dataclass(frozen=True)
class Sound:
    """A kind and its values, in the order of ``AXES[kind]``. Raises ValueError for others."""

    kind: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        axes = AXES.get(self.kind)
        if axes is None or len(axes) != len(self.values):
            raise ValueError(f"no such sound: {self.kind} {self.values}")
        for value, allowed in zip(self.values, axes.values(), strict=True):
            if value not in allowed:
                raise ValueError(f"no such sound: {self.kind} {self.values}")

    def __getitem__(self, axis: str) -> str:
        return self.values[list(AXES[self.kind]).index(axis)]

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(self.values)})"

    @property
    def attributes(self) -> dict[str, str]:
        """Every axis and its value, the kind among them."""
        return {"kind": self.kind, **dict(zip(AXES[self.kind], self.values, strict=True))}


@cache
def all_sounds() -> tuple[Sound, ...]:
    return tuple(
        Sound(kind, values) for kind, axes in AXES.items() for values in product(*axes.values())
    )


HELD_OUT: frozenset[Sound] = frozenset(
    Sound(kind, values)
    for kind, values in (
        ("tone", ("high", "soft")),
        ("glide", ("rising", "quick", "soft")),
        ("glide", ("falling", "slow", "loud")),
        ("beeps", ("3", "high", "soft")),
        ("beeps", ("2", "low", "loud")),
        ("beeps", ("4", "middle", "soft")),
        ("beeps", ("1", "middle", "loud")),
        ("drum", ("big", "fast", "soft")),
        ("drum", ("small", "slow", "loud")),
        ("noise", ("rumble", "swelling", "soft")),
        ("noise", ("hiss", "fading", "loud")),
        ("noise", ("hiss", "steady", "soft")),
    )
)


@cache
def training_sounds() -> tuple[Sound, ...]:
    return tuple(sound for sound in all_sounds() if sound not in HELD_OUT)


@cache
def held_out_sounds() -> tuple[Sound, ...]:
    return tuple(sound for sound in all_sounds() if sound in HELD_OUT)


def drawn_sound(random: np.random.Generator) -> Sound:
    """One to train on."""
    kind = random.choice(list(SHARES), p=list(SHARES.values()))
    sounds = [sound for sound in training_sounds() if sound.kind == kind]
    return sounds[int(random.integers(len(sounds)))]
