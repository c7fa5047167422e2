"""Speech by espeak-ng, inside Triton's Python backend."""

from __future__ import annotations

from typing import Any

from serving.models.espeak import espeak
from serving.models.triton_turns import SpeechTurns


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._turns = SpeechTurns(espeak())

    def execute(self, requests: list[Any]) -> None:
        self._turns.take(requests)

    def finalize(self) -> None:
        self._turns.close()
