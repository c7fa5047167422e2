"""What is heard in a clip: signal processing alone, which never sees the caption.

:func:`hear` decides kind and attributes of a clip from its envelope, its spectrum and the track
of its pitch; :func:`verdict` compares that with the sound that was asked for. A value between
two answers is no answer: the attribute is then missing, and counts as wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.demo_models.sound.world import SAMPLING_RATE_HZ, Sound

Array = NDArray[np.float64]

WINDOW = 512
HOP = 128
TRANSFORM = 4096
HOP_S = HOP / SAMPLING_RATE_HZ

SILENT = 0.015
"""RMS of the loudest 64 ms under which a clip is empty. The softest sound has 0.04."""
LOUD = (0.15, 0.19)
"""RMS of the loudest 64 ms: soft below the first, loud above the second."""
ACTIVE = 0.3
"""Share of the peak above which a sound is on."""
TONAL = 0.6
"""Share of the energy within a few Hz of the strongest pitch and its octave, for a tone."""
DRUM_HZ = {"big": (55.0, 105.0), "small": (122.0, 160.0)}
PITCH_HZ = {"low": (165.0, 310.0), "middle": (440.0, 760.0), "high": (1120.0, 1850.0)}
BRIGHT_HZ = (800.0, 1500.0)
"""Centre of the spectrum: a rumble below the first, a hiss above the second."""
GLIDES = 2.5
"""Ratio of the pitches at the ends of a glide, at least. The renderer's is 4.4 to 7.8."""
GLIDE_S = {"quick": (0.35, 0.8), "slow": (1.0, 1.6)}
STEADY = 1.12
"""Ratio of the highest and lowest pitch within one tone, at most."""


@dataclass(frozen=True)
class Heard:
    """A kind, and the values of the axes that could be told."""

    kind: str
    values: dict[str, str]

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(f'{k}={v}' for k, v in self.values.items())})"


@dataclass(frozen=True)
class _Clip:
    level: Array
    """RMS for every hop, over one window."""
    pitch_hz: Array
    """The strongest frequency for every hop."""
    tonality: float
    """Weighted by energy: the share of a window's energy that lies at its pitch and its octave."""
    centre_hz: float
    """The frequency with half of the clip's energy on either side."""

    @property
    def peak(self) -> float:
        return float(self.level.max())


def hear(audio: Any) -> Heard | None:
    """What sounds in ``audio``, [samples] at ``SAMPLING_RATE_HZ``; None: nothing we know."""
    samples = np.asarray(audio, dtype=np.float64)
    if samples.ndim != 1 or len(samples) < 2 * WINDOW or not np.isfinite(samples).all():
        return None
    clip = _analyse(samples - samples.mean())
    if clip.peak < SILENT:
        return None
    heard: Heard | None
    if clip.tonality < TONAL:
        heard = _hear_noise(clip)
    else:
        heard = _hear_tones(clip, len(samples) / SAMPLING_RATE_HZ)
    if heard is not None:
        if clip.peak < LOUD[0]:
            heard.values["loudness"] = "soft"
        elif clip.peak > LOUD[1]:
            heard.values["loudness"] = "loud"
    return heard


def verdict(sound: Sound, audio: Any) -> dict[str, bool]:
    """For the kind and for every axis of ``sound``: was it heard in ``audio``?"""
    heard = hear(audio)
    if heard is None or heard.kind != sound.kind:
        return dict.fromkeys(sound.attributes, False)
    found = {"kind": heard.kind, **heard.values}
    return {axis: found.get(axis) == value for axis, value in sound.attributes.items()}


def _analyse(samples: Array) -> _Clip:
    padded = np.pad(samples, WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    level = np.sqrt(np.mean(windows**2, axis=1))
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW), TRANSFORM)) ** 2
    frequency = np.fft.rfftfreq(TRANSFORM, 1 / SAMPLING_RATE_HZ)
    power[:, frequency < 40] = 0.0
    at = power.argmax(axis=1)
    pitch_hz = frequency[at]
    lobe_hz = 2.5 * SAMPLING_RATE_HZ / WINDOW
    away_hz = np.abs(frequency[None] - pitch_hz[:, None])
    octave_hz = np.abs(frequency[None] - 2 * pitch_hz[:, None])
    near = (away_hz < lobe_hz) | (octave_hz < lobe_hz)
    energy = power.sum(axis=1) + 1e-12
    share = (power * near).sum(axis=1) / energy
    total = power.sum(axis=0).cumsum()
    return _Clip(
        level=level,
        pitch_hz=pitch_hz,
        tonality=float((share * energy).sum() / energy.sum()),
        centre_hz=float(frequency[np.searchsorted(total, total[-1] / 2)]),
    )


def _hear_noise(clip: _Clip) -> Heard:
    values = {}
    if clip.centre_hz < BRIGHT_HZ[0]:
        values["colour"] = "rumble"
    elif clip.centre_hz > BRIGHT_HZ[1]:
        values["colour"] = "hiss"
    part = len(clip.level) // 4
    first, last = (float(np.mean(clip.level[piece])) for piece in (slice(part), slice(-part, None)))
    change = last / max(first, 1e-9)
    if 1 / 1.7 < change < 1.7:
        values["shape"] = "steady"
    elif change > 2.2:
        values["shape"] = "swelling"
    elif change < 1 / 2.2:
        values["shape"] = "fading"
    return Heard("noise", values)


def _hear_tones(clip: _Clip, duration_s: float) -> Heard | None:
    runs = _runs(clip.level > ACTIVE * clip.peak)
    on = np.concatenate([np.arange(*run) for run in runs])
    pitch_hz = float(np.median(clip.pitch_hz[on]))
    if DRUM_HZ["big"][0] < pitch_hz < DRUM_HZ["small"][1]:
        heard = _hear_drum(runs)
        return heard and _with_band(heard, "size", DRUM_HZ, pitch_hz)
    longest = max(runs, key=lambda run: run[1] - run[0])
    length_s = (longest[1] - longest[0]) * HOP_S
    ends = _ends(clip.pitch_hz[slice(*longest)])
    if max(ends) / min(ends) > GLIDES:
        return _hear_glide(clip, runs)
    if any(_wavers(clip.pitch_hz[slice(*run)]) for run in runs):
        return None
    if len(runs) == 1 and length_s > 0.7 * duration_s:
        heard = Heard("tone", {})
    elif max(run[1] - run[0] for run in runs) * HOP_S < 0.35 and _similar(clip, runs):
        heard = Heard("beeps", {"count": str(len(runs))})
    else:
        return None
    return _with_band(heard, "pitch", PITCH_HZ, pitch_hz)


def _with_band(
    heard: Heard, axis: str, bands: Mapping[str, tuple[float, float]], at_hz: float
) -> Heard:
    """``heard`` with the name of the band that ``at_hz`` lies in, if there is one."""
    for name, (low, high) in bands.items():
        if low < at_hz < high:
            heard.values[axis] = name
    return heard


def _hear_drum(runs: list[tuple[int, int]]) -> Heard | None:
    if len(runs) < 2:
        return None
    between_s = [(after[0] - before[0]) * HOP_S for before, after in pairwise(runs)]
    values = {}
    if max(between_s) > 1.6 * min(between_s):
        pass  # no even beat, no tempo
    elif 0.45 < np.median(between_s) < 0.85:
        values["tempo"] = "slow"
    elif 0.15 < np.median(between_s) < 0.33:
        values["tempo"] = "fast"
    return Heard("drum", values)


def _hear_glide(clip: _Clip, runs: list[tuple[int, int]]) -> Heard | None:
    if len(runs) > 1:
        return None
    track = clip.pitch_hz[slice(*runs[0])]
    start, end = _ends(track)
    steps = np.diff(track)
    against = np.abs(steps[np.sign(steps) == -np.sign(end - start)]).sum()
    if against > 0.25 * abs(end - start):
        return None  # it goes up and down
    values = {"direction": "rising" if end > start else "falling"}
    length_s = len(track) * HOP_S
    for pace, (least_s, most_s) in GLIDE_S.items():
        if least_s < length_s < most_s:
            values["pace"] = pace
    return Heard("glide", values)


def _runs(on: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last-but-one index of every stretch of True; gaps of one hop are closed."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
    runs: list[tuple[int, int]] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if runs and start - runs[-1][1] <= 1:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


def _ends(track: Array) -> tuple[float, float]:
    """The pitch at the start and at the end of a stretch."""
    few = max(1, min(6, len(track) // 4))
    return float(np.median(track[:few])), float(np.median(track[-few:]))


def _wavers(track: Array) -> bool:
    inner = track[1:-1] if len(track) > 4 else track
    low, high = np.percentile(inner, [10, 90])
    return bool(high / low > STEADY)


def _similar(clip: _Clip, runs: list[tuple[int, int]]) -> bool:
    """Beeps are one pitch and last about equally long."""
    pitches = [float(np.median(clip.pitch_hz[slice(*run)])) for run in runs]
    lengths = [run[1] - run[0] for run in runs]
    return max(pitches) / min(pitches) < STEADY and max(lengths) < 2.2 * min(lengths)
