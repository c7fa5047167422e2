"""Bark (https://github.com/suno-ai/bark): three transformers and a codec, for some dozen languages.

A checkpoint brings its voices along, each a few seconds of somebody's speech as tokens, which every
sentence begins from. It speaks at its own pace, and in fifteen seconds at most at a time.
"""

from __future__ import annotations

import torch
from transformers import BarkModel, BarkProcessor

from serving.models.weights import load_whole
from serving.plan.errors import ConfigError
from serving.plan.speech_model import Checkpoint

NAMED_MAX = 20
"""So many voices are named to who asked for others."""


class BarkVoices:
    """A :class:`~serving.models.voices.VoiceFamily`."""

    def __init__(
        self, source: str, revision: str | None, checkpoint: Checkpoint, device: torch.device
    ) -> None:
        self._processor = BarkProcessor.from_pretrained(source, revision=revision)
        have = self._processor.available_voice_presets
        if strange := [voice for voice in checkpoint.voices if voice not in have]:
            some = ", ".join(have[:NAMED_MAX]) or "none"
            raise ConfigError(f"it has no voice {', '.join(strange)}; it has {some}")
        self._model = load_whole(BarkModel, source, revision, checkpoint.dtype).to(device)
        self._device = device
        # Now, so that no listener waits for a file.
        self._voices = {
            voice: self._processor("", voice_preset=voice)["history_prompt"].to(device)
            for voice in checkpoint.voices
        }
        self.sample_rate_hz = int(self._model.config.codec_config.sampling_rate)

    def waveform(self, text: str, voice: str, speed: float) -> torch.Tensor:
        tokens = self._processor(text).to(self._device)
        made: torch.Tensor = self._model.generate(**tokens, history_prompt=self._voices[voice])
        return made[0]
