"""One voice."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

VOICE = {"ID": "tone", "NAME": "Tone", "LANGUAGES": "en", "GENDER": "neutral"}


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        tensors = [
            pb_utils.Tensor(name, np.array([text.encode()], np.object_))
            for name, text in VOICE.items()
        ]
        return [pb_utils.InferenceResponse(output_tensors=tensors) for _ in requests]
