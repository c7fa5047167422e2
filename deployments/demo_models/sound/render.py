"""How the sounds of the demo world sound: a score from a seed, and audio from the score.

A score says for every frame of 48 ms how loud each of fifteen pitches and two noises is. Every
pitch is a whole number of cycles in a frame, and all begin and end on frames: what a frame sounds
like then depends on its column of the score and its neighbours' alone, not on a phase that has
to agree all along the clip, which a denoiser of this size could not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.demo_models.sound.world import DURATION_S_MAX, SAMPLING_RATE_HZ, Sound

Audio = NDArray[np.float32]
Score = NDArray[np.float64]
"""[VOICES, FRAMES]: peak of a sine for the pitches, ``NOISE_RMS`` times that for the noises."""

FRAME = 384
FRAMES = 64
SAMPLES = FRAME * FRAMES
"""3.072 s, the longest clip."""
FRAME_S = FRAME / SAMPLING_RATE_HZ
CYCLES = (4, 7, 9, 11, 13, 16, 20, 24, 28, 32, 39, 48, 60, 68, 76)
"""Of each pitch in a frame: the two drums (83 and 146 Hz), then a scale from 188 to 1583 Hz."""
NOISES = ("hiss", "rumble")
VOICES = len(CYCLES) + len(NOISES)

DRUM_VOICES: Mapping[str, int] = {"big": 0, "small": 1}
SCALE = tuple(range(2, len(CYCLES)))
PITCH_VOICES: Mapping[str, int] = {"low": 3, "middle": 8, "high": 13}
"""229, 583 and 1417 Hz."""
LEVELS: Mapping[str, tuple[float, float]] = {"soft": (0.07, 0.11), "loud": (0.42, 0.60)}
"""Peak of a sine, of full scale."""
NOISE_RMS = 0.6
HIT = (1.0, 0.6, 0.2, 0.06)
"""Level of a drum, frame by frame."""
BEATS: Mapping[str, int] = {"slow": 13, "fast": 5}
"""Frames from one hit to the next: 0.62 and 0.24 s."""
BEEP = 3
"""Frames of a beep: 0.14 s."""
RAMP = 96
"""Samples over which a level changes between two frames."""


def compose(sound: Sound, duration_s: float, seed: int) -> Score:
    """The score of ``sound``, silent from the last whole frame before ``duration_s``.

    Where the axes leave room (level, gaps, when something short begins), ``seed`` decides. Raises
    ValueError for a duration over ``DURATION_S_MAX``.
    """
    if not 0 < duration_s <= DURATION_S_MAX:
        raise ValueError(f"a sound lasts up to {DURATION_S_MAX} s, not {duration_s}")
    random = np.random.default_rng(seed)
    score = np.zeros((VOICES, FRAMES))
    level = random.uniform(*LEVELS[sound["loudness"]])
    _COMPOSERS[sound.kind](score, sound, int(duration_s / FRAME_S + 1e-6), random)
    return level * score


def perform(score: Score, seed: int) -> Audio:
    """The audio of ``score``, [SAMPLES] in [-1, 1]; ``seed`` makes the noise."""
    audio = np.zeros(SAMPLES)
    for voice in np.flatnonzero(score.any(axis=1)):
        if voice < len(CYCLES):
            audio += _envelope(score[voice]) * _wave(CYCLES[voice])
        else:
            noise = np.clip(_noise_wave(NOISES[voice - len(CYCLES)], seed), -2.4, 2.4)
            audio += NOISE_RMS * _envelope(score[voice]) * noise
    return audio.astype(np.float32)


def render(sound: Sound, duration_s: float, seed: int) -> Audio:
    """``sound`` as [SAMPLES] in [-1, 1]; silence after ``duration_s``."""
    return perform(compose(sound, duration_s, seed), seed)


def _envelope(levels: Score) -> Score:
    """Levels of frames as levels of samples, with ramps at the borders."""
    steps = np.repeat(levels, FRAME)
    ramp = np.hanning(RAMP + 1)
    return np.convolve(np.pad(steps, RAMP // 2), ramp / ramp.sum(), mode="valid")


@cache
def _wave(cycles: int) -> Score:
    return np.asarray(np.sin(2 * np.pi * cycles * np.arange(SAMPLES) / FRAME))


def _noise_wave(colour: str, seed: int) -> Score:
    """Noise of RMS 1: a hiss above 1500 Hz, or a rumble below 350 Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(SAMPLES))
    frequency = np.fft.rfftfreq(SAMPLES, 1 / SAMPLING_RATE_HZ)
    if colour == "hiss":
        spectrum *= 1 / (1 + (1500 / np.maximum(frequency, 1.0)) ** 4)
    else:
        spectrum *= (frequency > 30) / (1 + (frequency / 350) ** 4)
    wave = np.fft.irfft(spectrum, SAMPLES)
    return np.asarray(wave / np.sqrt(np.mean(wave**2)))


def _tone(score: Score, sound: Sound, frames: int, random: np.random.Generator) -> None:
    score[PITCH_VOICES[sound["pitch"]], :frames] = 1.0


def _glide(score: Score, sound: Sound, frames: int, random: np.random.Generator) -> None:
    start, length = (0, frames) if sound["pace"] == "slow" else (int(random.integers(1, 4)), 11)
    voices = np.array(SCALE)[np.round(np.linspace(0, len(SCALE) - 1, length)).astype(int)]
    if sound["direction"] == "falling":
        voices = voices[::-1]
    score[voices, np.arange(start, start + length)] = 1.0


def _beeps(score: Score, sound: Sound, frames: int, random: np.random.Generator) -> None:
    start, gap = int(random.integers(1, 4)), int(random.integers(3, 5))
    for index in range(int(sound["count"])):
        first = start + index * (BEEP + gap)
        score[PITCH_VOICES[sound["pitch"]], first : first + BEEP] = 1.0


def _drum(score: Score, sound: Sound, frames: int, random: np.random.Generator) -> None:
    for first in range(0, frames - 2, BEATS[sound["tempo"]]):
        hit = HIT[: frames - first]
        score[DRUM_VOICES[sound["size"]], first : first + len(hit)] = hit


def _noise(score: Score, sound: Sound, frames: int, random: np.random.Generator) -> None:
    along = np.linspace(0, 1, frames)
    start = random.uniform(0.02, 0.06)
    score[len(CYCLES) + NOISES.index(sound["colour"]), :frames] = {
        "steady": np.ones(frames),
        "swelling": start + (1.1 - start) * along,
        "fading": start + (1.1 - start) * (1 - along),
    }[sound["shape"]]


_COMPOSERS: Mapping[str, Callable[[Score, Sound, int, Any], None]] = {
    "tone": _tone,
    "glide": _glide,
    "beeps": _beeps,
    "drum": _drum,
    "noise": _noise,
}
