"""The model ``slow`` of tests/triton_models: one request at a time, and one that waits."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from serving.models.triton import Arrays, TritonModel, strings
from serving.plan.errors import ModelServerBusy
from serving.plan.triton import Tensor, TritonModelSpec

SLOW = TritonModelSpec(
    model="slow",
    inputs={
        "SECONDS": Tensor(dtype="FP32", shape=(-1, 1)),
        "NOTES": Tensor(dtype="BYTES", shape=(-1, 1)),
    },
    outputs={"SLEPT": Tensor(dtype="FP32", shape=(-1, 1))},
)


def sleep(seconds: float, notes: Path) -> dict[str, Any]:
    return {
        "SECONDS": np.array([[seconds]], np.float32),
        "NOTES": strings([str(notes)], 1, 1),
    }


def text_of(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


async def noted(notes: Path, word: str) -> str:
    """What the model has noted, once that holds a word."""
    async with asyncio.timeout(20):
        while (text := await asyncio.to_thread(text_of, notes)) is None or word not in text:
            await asyncio.sleep(0.02)
    return text


async def taken(model: TritonModel, inputs: Arrays, timeout_s: float | None = None) -> Any:
    """The answer, asked for again while the server is full: one that was given up in its queue
    counts there for up to half a second more."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return await model.infer(inputs, timeout_s=timeout_s)
        except ModelServerBusy:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
