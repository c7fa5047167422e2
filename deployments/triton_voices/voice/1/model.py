"""Speech by a neural voice of the catalog, inside Triton's Python backend."""

from __future__ import annotations

from typing import Any

from deployments.settings import StackSettings
from serving.models.triton_turns import SpeechTurns
from serving.models.voices import load_voices
from serving.plan.speech_model import load_speech


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        settings = StackSettings.load()
        entry = args["model_name"]
        model = load_speech(settings.catalog_folders).only([entry]).models[entry]
        self._turns = SpeechTurns(load_voices(model, settings.models_folder))

    def execute(self, requests: list[Any]) -> None:
        self._turns.take(requests)

    def finalize(self) -> None:
        self._turns.close()
