"""VITS (https://arxiv.org/abs/2106.06103): a text at once, one small network for each language.

The thousand languages of MMS (https://arxiv.org/abs/2305.13516) are such checkpoints, as are those
of many speakers, whose numbers are their voices.
"""

from __future__ import annotations

import torch
from transformers import VitsModel, VitsTokenizer
from transformers.utils import is_phonemizer_available, is_uroman_available

from serving.models.weights import load_whole
from serving.plan.errors import ConfigError
from serving.plan.speech_model import Checkpoint

TOKENS_MIN = 2
"""Its attention to what is near takes no fewer."""


class VitsVoices:
    """A :class:`~serving.models.voices.VoiceFamily`. A checkpoint of one speaker has one voice,
    whatever the entry calls it."""

    def __init__(
        self, source: str, revision: str | None, checkpoint: Checkpoint, device: torch.device
    ) -> None:
        self._tokenizer = VitsTokenizer.from_pretrained(source, revision=revision)
        self._check_tokenizer()
        self._model = load_whole(VitsModel, source, revision, checkpoint.dtype).to(device)
        self._device = device
        self._speakers = self._numbered(list(checkpoint.voices))
        self.sample_rate_hz = int(self._model.config.sampling_rate)

    def waveform(self, text: str, voice: str, speed: float) -> torch.Tensor:
        tokens = self._tokenizer(text, return_tensors="pt").to(self._device)
        if tokens["input_ids"].shape[1] < TOKENS_MIN:
            # Such as digits, which MMS does not know.
            return torch.zeros(0)
        made = self._model(
            **tokens,
            speaker_id=self._speakers[voice],
            speaking_rate=self._model.config.speaking_rate * speed,
        )
        waveform: torch.Tensor = made.waveform[0]
        return waveform

    def _check_tokenizer(self) -> None:
        """It would only warn, or fail in somebody's request."""
        if self._tokenizer.phonemize and not is_phonemizer_available():
            raise ConfigError(
                "it speaks phonemes, which need espeak-ng and `pip install phonemizer`"
            )
        if self._tokenizer.is_uroman and not is_uroman_available():
            raise ConfigError("it reads Latin letters alone, which needs `pip install uroman`")

    def _numbered(self, voices: list[str]) -> dict[str, int | None]:
        """The speaker of each voice: None where there is only one."""
        count = int(self._model.config.num_speakers)
        if count == 1:
            if len(voices) > 1:
                raise ConfigError(f"it has one speaker, and the catalog names {len(voices)} voices")
            return dict.fromkeys(voices)
        numbers = {str(number): number for number in range(count)}
        if strange := [voice for voice in voices if voice not in numbers]:
            raise ConfigError(
                f"it has no voice {', '.join(strange)}; its voices are its speakers' numbers, 0 to "
                f"{count - 1}"
            )
        return {voice: numbers[voice] for voice in voices}
