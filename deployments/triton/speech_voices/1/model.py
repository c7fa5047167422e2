"""The voices of espeak-ng, for whoever speaks through Triton."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.models.espeak import espeak


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._voices = espeak().voices

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        language = pb_utils.get_input_tensor_by_name(request, "LANGUAGE").as_numpy()[0].decode()
        found = [voice for voice in self._voices if voice.language.startswith(language)]
        columns: dict[str, list[str]] = {
            "ID": [voice.id for voice in found],
            "NAME": [voice.name for voice in found],
            "LANGUAGES": [voice.language for voice in found],
            "GENDER": [voice.gender for voice in found],
        }
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, np.array([each.encode() for each in column], np.object_))
                for name, column in columns.items()
            ]
        )
