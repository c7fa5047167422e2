"""A name for everything that decides the bits of a result besides the request."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any

import diffusers
import torch
import transformers

from serving.plan.catalog import Model

SAMPLES_PER_TENSOR = 64
ARITHMETIC = 1
"""Raised by whoever changes what our own step computes."""


def fingerprint(model: Model, pipeline: Any, device: torch.device) -> str:
    """16 hex digits that two loaded models share only if one may go on where the other stopped.

    Weights are sampled, evenly over every tensor: hashing tens of gigabytes at each start would
    take longer than loading them, and weights that differ at all differ nearly everywhere.
    """
    parts: dict[str, Any] = {
        "arithmetic": ARITHMETIC,
        "weights": model.weights.model_dump(),
        "load": model.load.model_dump(),
        "batch": model.batch.model_dump(),
        "device": _device_class(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "scheduler": [type(pipeline.scheduler).__name__, dict(pipeline.scheduler.config)],
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            digest.update(name.encode())
            _add_weights(digest, component)
    return digest.hexdigest()[:16]


def _device_class(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _add_weights(digest: Any, module: torch.nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type == "meta":  # offloaded; its name and shape must do
            continue
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() // SAMPLES_PER_TENSOR)
        sample = flat[::stride][:SAMPLES_PER_TENSOR].float().cpu()
        digest.update(sample.numpy().tobytes())
