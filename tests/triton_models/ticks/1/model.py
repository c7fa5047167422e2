"""Counts aloud, and notes in a file after how many ticks it was cancelled."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._count(request)

    def _count(self, request: Any) -> None:
        sender = request.get_response_sender()
        count = pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy().item()
        every_s = pb_utils.get_input_tensor_by_name(request, "EVERY_S").as_numpy().item()
        notes = Path(pb_utils.get_input_tensor_by_name(request, "NOTES").as_numpy().item().decode())
        for n in range(count):
            if sender.is_cancelled():
                notes.write_text(str(n))
                break
            tick = pb_utils.Tensor("TICK", np.array([n], np.int32))
            sender.send(pb_utils.InferenceResponse([tick]))
            time.sleep(every_s)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
