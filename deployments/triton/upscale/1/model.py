"""Frames at twice their size, by Lanczos resampling with three lobes (Duchon, 1979, "Lanczos
Filtering in One and Two Dimensions"), one axis after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

LOBES = 3
Floats = NDArray[np.float32]


def _kernel(shift: float) -> Floats:
    """Weights of the samples from -2 to 3 for a point ``shift`` to the right of sample 0."""
    distance = np.arange(1 - LOBES, LOBES + 1) - shift
    weights = np.sinc(distance) * np.sinc(distance / LOBES)
    return np.asarray(weights / weights.sum(), np.float32)


# A pixel covers its square, so the centres of its two halves lie a quarter to its left and right.
LEFT, RIGHT = _kernel(0.75), _kernel(0.25)


def _doubled(values: Floats, axis: int) -> Floats:
    """Twice as many along this axis; edges repeat."""
    size = values.shape[axis]
    edge = [(0, 0)] * values.ndim
    edge[axis] = (LOBES, LOBES)
    padded = np.moveaxis(np.pad(values, edge, mode="edge"), axis, 0)
    out = np.zeros((2 * size, *padded.shape[1:]), np.float32)
    for tap in range(2 * LOBES):
        # Left halves lie between the sample before and this one, right ones before the next.
        out[0::2] += LEFT[tap] * padded[tap : tap + size]
        out[1::2] += RIGHT[tap] * padded[tap + 1 : tap + 1 + size]
    return np.moveaxis(out, 0, axis)


def upscaled(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, height, width, 3) to (n, 2 height, 2 width, 3)."""
    doubled = _doubled(_doubled(frames.astype(np.float32), 1), 2)
    return np.clip(np.rint(doubled), 0, 255).astype(np.uint8)


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        given = [pb_utils.get_input_tensor_by_name(each, "FRAMES").as_numpy() for each in requests]
        tensors = [pb_utils.Tensor("UPSCALED", upscaled(frames)) for frames in given]
        return [pb_utils.InferenceResponse(output_tensors=[tensor]) for tensor in tensors]
