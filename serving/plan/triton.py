"""What a model on a KServe v2 server is: where it is served, and what it takes and gives.

Plain values, as a catalog entry says them. Shapes and types are the server's own, batch dimension
included where the model has one; ``serving/models/triton.py`` holds them to its metadata.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Strict):
    """One input or output; -1 is any size. ``BYTES`` are strings."""

    dtype: Datatype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class TritonModelSpec(_Strict):
    """A model, and what whoever calls it relies on.

    ``streaming``: it answers a request with any number of responses (Triton: decoupled).
    ``timeout_s``: a call, or the wait for a stream's next response, takes no longer.
    """

    model: str = Field(min_length=1)
    version: str = Field("", description="the server's choice where it is empty")
    inputs: dict[str, Tensor] = Field(min_length=1)
    outputs: dict[str, Tensor] = Field(min_length=1)
    streaming: bool = False
    timeout_s: float = Field(30.0, gt=0, le=3600)
