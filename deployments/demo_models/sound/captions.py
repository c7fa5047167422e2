"""Captions of the sounds: several words for each value, several sentences for each kind.

A sentence has slots in braces. A slot written ``{pitch?}`` may be left empty, so that the model
also knows captions that say less; what the sound does there is then left to chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from zlib import crc32

from deployments.demo_models.sound.world import Sound

WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "loudness": {
        "soft": ("soft", "quiet", "faint", "gentle"),
        "loud": ("loud", "strong", "powerful", "noisy"),
    },
    "pitch": {
        "low": ("low", "deep", "bass"),
        "middle": ("middle", "medium", "mid"),
        "high": ("high", "shrill", "piercing"),
    },
    "direction": {
        "rising": ("rising", "ascending", "climbing"),
        "falling": ("falling", "descending", "dropping"),
    },
    "pace": {
        "slow": ("slow", "slowly", "gradually", "long"),
        "quick": ("quick", "quickly", "rapidly", "short"),
    },
    "count": {
        "1": ("one", "1", "a single", "a"),
        "2": ("two", "2", "a pair of"),
        "3": ("three", "3"),
        "4": ("four", "4"),
    },
    "tempo": {
        "slow": ("slow", "slowly beaten", "unhurried"),
        "fast": ("fast", "rapid", "hurried"),
    },
    "size": {
        "big": ("big", "large", "huge"),
        "small": ("small", "little", "tiny"),
    },
    "colour": {
        "hiss": ("hiss", "hissing", "static", "white noise"),
        "rumble": ("rumble", "rumbling", "wind", "thunder"),
    },
    "shape": {
        "steady": ("steady", "even", "constant"),
        "swelling": ("swelling", "growing", "approaching"),
        "fading": ("fading", "dying", "receding"),
    },
}
SENTENCES: Mapping[str, tuple[str, ...]] = {
    "tone": (
        "a {loudness?} {pitch?} tone",
        "a {loudness?} steady {pitch?} tone",
        "a long {pitch?} note , {loudness?}",
        "one {loudness?} {pitch?} note held",
        "a {pitch?} continuous hum , {loudness?}",
        "steady {pitch?} tone , {loudness?}",
    ),
    "glide": (
        "a {loudness?} {pace?} {direction} tone",
        "a {pace?} {direction} tone , {loudness?}",
        "a {direction} {loudness?} whistle , {pace?}",
        "the pitch is {pace?} {direction} , {loudness?}",
        "a {loudness?} siren {pace?} {direction}",
    ),
    "beeps": (
        "{count} {loudness?} {pitch?} {beeps}",
        "{count} short {loudness?} {pitch?} {beeps}",
        "{count} {pitch?} {beeps} , {loudness?}",
        "{count} brief {pitch?} {beeps} , {loudness?}",
        "the sound of {count} {loudness?} {pitch?} {beeps}",
    ),
    "drum": (
        "{loudness?} {tempo?} {size?} drum beats",
        "a {loudness?} {tempo?} {size?} drum",
        "{tempo?} drumming on a {size?} drum , {loudness?}",
        "the {loudness?} sound of {tempo?} {size?} drums",
        "{tempo?} {loudness?} beats of a {size?} drum",
    ),
    "noise": (
        "a {loudness?} {shape?} {colour}",
        "{loudness?} {shape?} {colour}",
        "the sound of {shape?} {colour} , {loudness?}",
        "{colour} , {shape?} and {loudness?}",
        "{loudness?} {colour} , {shape?}",
    ),
}
BEEP = ("beep", "blip", "pip")
SHORTENED = 0.3
"""How often an optional slot is left empty in training."""


def caption(sound: Sound, random: Random, shortened: float = SHORTENED) -> str:
    """One way to say ``sound``. Each optional slot is empty with probability ``shortened``."""

    def fill(slot: re.Match[str]) -> str:
        axis, optional = slot[1], slot[2]
        if axis == "beeps":
            return random.choice(BEEP) + ("" if sound["count"] == "1" else "s")
        if optional and random.random() < shortened:
            return ""
        return random.choice(WORDS[axis][sound[axis]])

    text = re.sub(r"\{(\w+)(\??)\}", fill, random.choice(SENTENCES[sound.kind]))
    return _tidy(text)


def _tidy(text: str) -> str:
    """Without the commas and the "and" that an empty slot leaves behind."""
    words = text.split()
    while words and words[-1] in (",", "and"):
        words.pop()
    kept = [
        word
        for word, following in zip(words, [*words[1:], ""], strict=True)
        if not (word == "," and following in (",", "and"))
    ]
    return " ".join(kept).replace(" ,", ",")


def vocabulary() -> tuple[str, ...]:
    """Every word of every caption, sorted, and the comma."""
    sentences = [text for texts in SENTENCES.values() for text in texts]
    words = [word for values in WORDS.values() for texts in values.values() for word in texts]
    beeps = [*BEEP, *(f"{word}s" for word in BEEP)]
    plain = re.sub(r"\{.*?\}", " ", " ".join(sentences))
    return tuple(sorted({*plain.split(), *" ".join(words).split(), *beeps}))


def complete(sound: Sound, random: Random) -> str:
    """A caption that says the value of every axis of ``sound``."""
    return caption(sound, random, shortened=0.0)


def held_out(text: str) -> bool:
    """Whether training never says ``text``: so it is with one caption in ten."""
    return crc32(text.encode()) % 10 == 0
