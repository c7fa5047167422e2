"""Whether a frame shows anything, from two figures of its brightness: how much it varies, and how
much of that neighbouring pixels share. Those of a picture agree, and those of noise do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
FLAT_DEVIATION = 3.0
"""Of 255: the noise of a compressed flat area is below it."""
AGREEMENT = 0.5
"""Correlation of neighbours: of photographs some 0.95, of white noise 0."""
SHARPNESS = 8.0


def scores(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, height, width, 3) to (n, 3): flat, noise, picture."""
    luma = frames.astype(np.float32) @ LUMA
    deviation = luma.std(axis=(1, 2))
    centred = luma - luma.mean(axis=(1, 2), keepdims=True)
    shared = (centred[:, :, 1:] * centred[:, :, :-1]).mean(axis=(1, 2))
    agreement = shared / np.maximum(deviation**2, 1e-6)
    shows = _sigmoid(np.log(np.maximum(deviation, 1e-3) / FLAT_DEVIATION))
    agrees = _sigmoid(SHARPNESS * (agreement - AGREEMENT) / AGREEMENT)
    return np.stack([1 - shows, shows * (1 - agrees), shows * agrees], axis=1).astype(np.float32)


def _sigmoid(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-SHARPNESS / 2 * value)), np.float32)


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        given = [pb_utils.get_input_tensor_by_name(each, "FRAMES").as_numpy() for each in requests]
        tensors = [pb_utils.Tensor("SCORES", scores(frames)) for frames in given]
        return [pb_utils.InferenceResponse(output_tensors=[tensor]) for tensor in tensors]
