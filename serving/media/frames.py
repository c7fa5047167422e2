"""The one form in which pictures travel through this room: 8-bit RGB arrays."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serving.media.errors import EncodeError

Frame: TypeAlias = npt.NDArray[np.uint8]
"""One picture, uint8 [H, W, 3], RGB."""

Frames: TypeAlias = npt.NDArray[np.uint8]
"""A chunk of consecutive pictures, uint8 [F, H, W, 3], RGB. F may be zero."""

SIDE_MAX_PX = 8192
"""Longest side of a picture: what H.264 level 6.2 allows, and well inside JPEG's 65,535."""


def check_frame(frame: Frame) -> None:
    """Raise `EncodeError` unless `frame` is uint8 [H, W, 3] within the size limit."""
    _check(frame, dimensions=3, shape="[H, W, 3]")


def check_frames(frames: Frames) -> None:
    """Raise `EncodeError` unless `frames` is uint8 [F, H, W, 3] within the size limit."""
    _check(frames, dimensions=4, shape="[F, H, W, 3]")


def _check(array: npt.NDArray[np.uint8], *, dimensions: int, shape: str) -> None:
    if array.dtype != np.uint8 or array.ndim != dimensions or array.shape[-1] != 3:
        got = f"{array.dtype} {list(array.shape)}"
        raise EncodeError(f"expected uint8 {shape} in RGB, got {got}")
    height, width = array.shape[-3:-1]
    if not (1 <= height <= SIDE_MAX_PX and 1 <= width <= SIDE_MAX_PX):
        raise EncodeError(f"a picture of {width}x{height} is outside 1..{SIDE_MAX_PX} pixels")
