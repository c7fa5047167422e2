"""How the sounds of the demo world sound: rendered on the fly, from a seed.

Every pitch is *locked* to a grid of ``FRAME`` samples, the length of one latent of the codec: at
each border of the grid the phase is a whole number of cycles. A latent then need not carry a
phase that agrees with its neighbour's, which a denoiser of this size could not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.demo_models.sound.world import DURATION_S_MAX, SAMPLING_RATE_HZ, Sound

Audio = NDArray[np.float32]
Curve = NDArray[np.float64]

FRAME = 384
FRAMES = 64
SAMPLES = FRAME * FRAMES
"""3.072 s, the longest clip."""
GRID_HZ = SAMPLING_RATE_HZ / FRAME

PITCH_BINS: Mapping[str, tuple[int, int]] = {"low": (9, 13), "middle": (24, 32), "high": (60, 80)}
"""Lowest and highest pitch, in steps of ``GRID_HZ``: 188-271, 500-667 and 1250-1667 Hz."""
LEVELS: Mapping[str, tuple[float, float]] = {"soft": (0.07, 0.11), "loud": (0.42, 0.60)}
"""Peak of a sine, of full scale."""
DRUM_BINS = (4, 5)
NOISE_LEVEL = 0.6
"""RMS of noise over the peak of a sine of the same loudness: about the same RMS."""


def render(sound: Sound, duration_s: float, seed: int) -> Audio:
    """``sound`` as [SAMPLES] in [-1, 1]; silence after ``duration_s``.

    Where the axes leave room (exact pitch, level, lengths, gaps), ``seed`` decides.
    """
    if not 0 < duration_s <= DURATION_S_MAX:
        raise ValueError(f"a sound lasts up to {DURATION_S_MAX} s, not {duration_s}")
    random = np.random.default_rng(seed)
    level = random.uniform(*LEVELS[sound["loudness"]])
    made = _RENDERERS[sound.kind](sound, duration_s, random)
    end = int(duration_s * SAMPLING_RATE_HZ)
    made[end:] = 0.0
    return (level * made).astype(np.float32)


def _seconds() -> Curve:
    return np.arange(SAMPLES) / SAMPLING_RATE_HZ


def _locked_wave(frequency_hz: Curve) -> Curve:
    """A tone with a little of its octave, peak about 1, whose pitch follows [SAMPLES] in Hz."""
    cycles = np.concatenate([[0.0], np.cumsum(frequency_hz) / SAMPLING_RATE_HZ])
    borders = np.arange(0, SAMPLES + 1, FRAME)
    correction = np.round(cycles[borders]) - cycles[borders]
    locked = cycles[:-1] + np.interp(np.arange(SAMPLES), borders, correction)
    return 0.9 * np.sin(2 * np.pi * locked) + 0.2 * np.sin(4 * np.pi * locked)


def _gate(start_s: float, length_s: float, ramp_s: float = 0.012) -> Curve:
    """1 for ``length_s`` from ``start_s``, with ramps of half a cosine."""
    into = np.minimum(_seconds() - start_s, start_s + length_s - _seconds())
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(into / ramp_s, 0.0, 1.0))


def _pitch_hz(sound: Sound, random: np.random.Generator) -> float:
    low, high = PITCH_BINS[sound["pitch"]]
    return float(random.integers(low, high + 1)) * GRID_HZ


def _tone(sound: Sound, duration_s: float, random: np.random.Generator) -> Curve:
    start_s = random.uniform(0.0, 0.06)
    wave = _locked_wave(np.full(SAMPLES, _pitch_hz(sound, random)))
    return wave * _gate(start_s, duration_s - start_s - random.uniform(0.0, 0.06), ramp_s=0.03)


def _glide(sound: Sound, duration_s: float, random: np.random.Generator) -> Curve:
    if sound["pace"] == "slow":
        start_s = random.uniform(0.0, 0.06)
        length_s = duration_s - start_s - random.uniform(0.0, 0.06)
    else:
        length_s = random.uniform(0.4, 0.55)
        start_s = random.uniform(0.04, min(0.6, duration_s - length_s - 0.04))
    ends = [random.uniform(10, 14) * GRID_HZ, random.uniform(62, 78) * GRID_HZ]
    if sound["direction"] == "falling":
        ends.reverse()
    along = np.clip((_seconds() - start_s) / length_s, 0.0, 1.0)
    wave = _locked_wave(ends[0] * (ends[1] / ends[0]) ** along)
    return wave * _gate(start_s, length_s, ramp_s=0.03)


def _beeps(sound: Sound, duration_s: float, random: np.random.Generator) -> Curve:
    count = int(sound["count"])
    length_s, gap_s = random.uniform(0.10, 0.16), random.uniform(0.14, 0.22)
    whole_s = count * length_s + (count - 1) * gap_s
    start_s = random.uniform(0.04, min(0.5, duration_s - whole_s - 0.04))
    gates = [_gate(start_s + index * (length_s + gap_s), length_s) for index in range(count)]
    wave: Curve = _locked_wave(np.full(SAMPLES, _pitch_hz(sound, random))) * np.sum(gates, axis=0)
    return wave


def _drum(sound: Sound, duration_s: float, random: np.random.Generator) -> Curve:
    between_s = random.uniform(*((0.55, 0.68) if sound["tempo"] == "slow" else (0.21, 0.26)))
    decay_s = random.uniform(0.045, 0.06)
    skin = _locked_wave(np.full(SAMPLES, random.choice(DRUM_BINS) * GRID_HZ))
    hits = np.zeros(SAMPLES)
    at_s = random.uniform(0.02, 0.12)
    while at_s < duration_s - 0.14:
        since = _seconds() - at_s
        hit = np.exp(-np.maximum(since - 0.02, 0.0) / decay_s) * np.clip(since / 0.006, 0.0, 1.0)
        hits = np.maximum(hits, hit)
        at_s += between_s
    return skin * hits


def _noise(sound: Sound, duration_s: float, random: np.random.Generator) -> Curve:
    spectrum = np.fft.rfft(random.standard_normal(SAMPLES))
    frequency = np.fft.rfftfreq(SAMPLES, 1 / SAMPLING_RATE_HZ)
    if sound["colour"] == "hiss":
        spectrum *= 1 / (1 + (1500 / np.maximum(frequency, 1.0)) ** 4)
    else:
        spectrum *= (frequency > 30) / (1 + (frequency / 350) ** 4)
    wave = np.fft.irfft(spectrum, SAMPLES)
    wave *= NOISE_LEVEL / np.sqrt(np.mean(wave**2))
    along = np.clip(_seconds() / duration_s, 0.0, 1.0)
    start = random.uniform(0.02, 0.06)
    shape = {
        "steady": np.ones(SAMPLES),
        "swelling": start + (1.15 - start) * along,
        "fading": start + (1.15 - start) * (1 - along),
    }[sound["shape"]]
    return np.clip(wave * shape, -1.6, 1.6) * _gate(0.0, duration_s, ramp_s=0.03)


_RENDERERS: Mapping[str, Callable[[Sound, float, Any], Curve]] = {
    "tone": _tone,
    "glide": _glide,
    "beeps": _beeps,
    "drum": _drum,
    "noise": _noise,
}
