"""Neural voices: from a catalog entry to an engine that speaks, through transformers.

What is common to all of them: one sentence at a time, noise that begins anew with each, and 16-bit
samples. How a text becomes a waveform is a family's, a module each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from transformers import AutoConfig

from serving.models.bark import BarkVoices
from serving.models.vits import VitsVoices
from serving.models.weights import find_device, find_weights
from serving.plan.errors import ConfigError, ModelFailed, OutOfMemory
from serving.plan.speech import SpeechEngine, no_such_voice
from serving.plan.speech_model import Checkpoint, SpeechModel

SEED = 20261129
PAUSE_S = 0.25
"""After each sentence. These models end with their last sound."""

_noise = threading.Lock()
"""Whoever draws from torch's own generator holds it: a process has one."""


class VoiceFamily(Protocol):
    """One architecture's weights, loaded. Not to be used by several threads at once."""

    @property
    def sample_rate_hz(self) -> int:
        """Of its waveforms."""

    def waveform(self, text: str, voice: str, speed: float) -> torch.Tensor:
        """(samples,) between -1 and 1; none where there is nothing in it that the model can say.
        Draws its noise from torch's generator."""


FAMILIES: Mapping[str, Callable[[str, str | None, Checkpoint, torch.device], VoiceFamily]] = {
    "vits": VitsVoices,
    "bark": BarkVoices,
}
"""By the family of an entry, which is transformers' own name for the architecture. Each raises
:class:`ConfigError` where a checkpoint has not the voices that the entry names."""


class NeuralVoices:
    """A :class:`~serving.plan.speech.SpeechEngine`. The same text, voice and speed are the same
    bits, on a device of the same class: whatever was said before, and on whichever server a text
    goes on. A sentence that has begun is said to its end."""

    def __init__(self, model: SpeechModel, family: VoiceFamily, device: torch.device) -> None:
        self._model, self._family, self._device = model, family, device
        self.sample_rate_hz = family.sample_rate_hz
        self.voices = model.own_voices
        self._ids = {voice.id for voice in self.voices}

    def spoken_speed(self, speed: float) -> float:
        slowest, fastest = self._model.seat.speed.min, self._model.seat.speed.max
        return min(max(speed, slowest), fastest)

    def check_voice(self, voice: str) -> None:
        if voice not in self._ids:
            raise no_such_voice(voice)

    def say(
        self, text: str, voice: str, speed: float = 1.0, wanted: Callable[[], bool] | None = None
    ) -> bytes:
        self.check_voice(voice)
        cuda = [self._device] if self._device.type == "cuda" else []
        with _noise, torch.random.fork_rng(devices=cuda), torch.inference_mode():
            if wanted is not None and not wanted():
                return b""
            torch.manual_seed(SEED)
            try:
                waveform = self._family.waveform(text, voice, self.spoken_speed(speed))
                samples = _samples(waveform)
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(f"{self._model.id}: a sentence does not fit: {error}") from error
            except (RuntimeError, ValueError, IndexError) as error:
                raise ModelFailed(f"{self._model.id} cannot say this: {error}") from error
        return samples + b"\0\0" * round(PAUSE_S * self.sample_rate_hz)


def load_voices(model: SpeechModel, models_dir: Path) -> SpeechEngine:
    """Load the weights of an entry that has some, on the device it asks for.

    :class:`ConfigError` when there are none, no such device, or they are not what the entry says;
    the message says how to mend it.
    """
    checkpoint = model.checkpoint
    if checkpoint is None:
        raise ConfigError(f"model '{model.id}': it has no checkpoint")
    source, revision = find_weights(model.id, checkpoint.weights, models_dir, holds="config.json")
    device = find_device(model.id, checkpoint.device)
    try:
        kind = AutoConfig.from_pretrained(source, revision=revision).model_type
        if kind != model.family:
            raise ConfigError(f"it holds a model of the kind {kind}, and not {model.family}")
        family = FAMILIES[model.family](source, revision, checkpoint, device)
        _check_rate(checkpoint, family)
    except Exception as error:
        # A checkpoint may be broken in any way, and each has an error of its own.
        raise ConfigError(f"model '{model.id}': cannot load {source}: {error}") from error
    return NeuralVoices(model, family, device)


def _check_rate(checkpoint: Checkpoint, family: VoiceFamily) -> None:
    """The catalog states what whoever listens relies on; hold it to the weights."""
    if family.sample_rate_hz != checkpoint.sample_rate_hz:
        raise ConfigError(
            f"checkpoint.sample_rate_hz is {checkpoint.sample_rate_hz} in the catalog and "
            f"{family.sample_rate_hz} in the checkpoint"
        )


def _samples(waveform: torch.Tensor) -> bytes:
    """16-bit little-endian PCM."""
    if not bool(waveform.isfinite().all()):
        raise ValueError("it made something that is not a sound")
    loud = (waveform.float() * 32767).round().clamp(-32768, 32767)
    return loud.to(torch.int16).cpu().numpy().astype("<i2").tobytes()
