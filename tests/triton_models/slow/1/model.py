"""Sleeps as long as it is told, and notes in a file that it was cancelled. Below 0 it raises."""

import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._slept(request) for request in requests]

    def _slept(self, request: Any) -> Any:
        seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS")
        notes = Path(pb_utils.get_input_tensor_by_name(request, "NOTES").as_numpy().item().decode())
        if seconds.as_numpy().item() < 0:
            raise ValueError("it cannot sleep backwards")
        ends = time.monotonic() + seconds.as_numpy().item()
        with notes.open("a") as file:
            file.write("began\n")
        while time.monotonic() < ends:
            if request.is_cancelled():
                with notes.open("a") as file:
                    file.write("cancelled\n")
                error = pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)
                return pb_utils.InferenceResponse(error=error)
            time.sleep(0.01)
        return pb_utils.InferenceResponse([pb_utils.Tensor("SLEPT", seconds.as_numpy())])
