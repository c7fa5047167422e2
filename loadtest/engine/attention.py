"""Which attention kernels this device has, and how fast each is by itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel, attention_backend
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from loadtest.engine.flops import Shape, attention_flop
from loadtest.engine.work import now

BACKENDS = (
    "native",
    "_native_cudnn",
    "_native_flash",
    "_native_efficient",
    "flash",
    "_flash_3",
    "sage",
    "xformers",
)
"""Those of diffusers that need no download; what is not installed says so."""
PROBE = {"num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 1, "ffn_dim": 128}
ROWS = 2


def bench_attention(
    transformer: Mapping[str, Any],
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
) -> dict[str, Any]:
    """By backend: TFLOP/s of self-attention of a guided step in one layer, by shape; or why the
    backend cannot be used. The median of the repeats counts; a first call does not."""
    found: dict[str, Any] = {}
    for backend in BACKENDS:
        try:
            probe(backend)
            found[backend] = {
                shape.name: _measured(backend, transformer, shape, device, dtype, repeats)
                for shape in shapes
            }
        except Exception as error:
            found[backend] = {"error": in_short(error)}
    return found


def probe(backend: str) -> None:
    """Raise what the library says where a backend is not installed."""
    model = WanTransformer3DModel(text_dim=8, freq_dim=8, **PROBE)
    with attention_backend("native"):  # the library changes the process's default as well
        model.set_attention_backend(backend)


def in_short(error: BaseException) -> str:
    """What went wrong, on a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@torch.no_grad()
def _measured(
    backend: str,
    transformer: Mapping[str, Any],
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
) -> dict[str, Any]:
    heads, channels = transformer["num_attention_heads"], transformer["attention_head_dim"]
    size = (ROWS, shape.tokens, heads, channels)
    query, key, value = (torch.randn(size, device=device, dtype=dtype) for _ in range(3))
    seconds = []
    for _ in range(1 + repeats):
        began = now(device)
        dispatch_attention_fn(query, key, value, backend=AttentionBackendName(backend))
        seconds.append(now(device) - began)
    flop = attention_flop(shape.tokens, heads, channels, ROWS)
    median_s = statistics.median(seconds[1:])
    return {
        "tflops": round(flop / median_s / 1e12, 3),
        "median_s": round(median_s, 6),
        "seconds": [round(each, 6) for each in seconds[1:]],
    }
