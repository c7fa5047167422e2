"""Says a tone for each sentence, as high as it is told to: its instructions are a frequency."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

RATE_HZ, UNTOLD_HZ = 16_000, 440


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._say(request)

    def _say(self, request: Any) -> None:
        sender = request.get_response_sender()
        told = pb_utils.get_input_tensor_by_name(request, "INSTRUCTIONS")
        text = "" if told is None else told.as_numpy().item().decode()
        phase = 2 * np.pi * int(text or UNTOLD_HZ) * np.arange(RATE_HZ) / RATE_HZ
        tone = (16_000 * np.sin(phase)).astype(np.int16).reshape(1, -1)
        rate = np.array([[RATE_HZ]], np.int32)
        for _ in pb_utils.get_input_tensor_by_name(request, "SENTENCES").as_numpy().reshape(-1):
            tensors = [pb_utils.Tensor("AUDIO", tone), pb_utils.Tensor("SAMPLE_RATE", rate)]
            sender.send(pb_utils.InferenceResponse(output_tensors=tensors))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
