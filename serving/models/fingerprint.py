"""A name for everything that decides the bits of a result besides the request."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers

from serving.plan.catalog import Model

SAMPLES_PER_TENSOR = 64
NO_BITS = ("device", "prompt_cache_mb", "decode", "pinned_memory")
"""Options of the catalog that decide where and when, but no bit; the device's class does."""
ARITHMETIC = 2
"""Raised by whoever changes what our own step computes."""


def fingerprint(model: Model, pipeline: Any, device: torch.device) -> str:
    """16 hex digits that two loaded models share only if one may go on where the other stopped.

    Weights are sampled, evenly over every tensor: hashing tens of gigabytes at each start would
    take longer than loading them, and weights that differ at all differ nearly everywhere.
    """
    parts: dict[str, Any] = {
        "arithmetic": ARITHMETIC,
        "weights": model.weights.model_dump(),
        "load": model.load.model_dump(
            exclude={"device", "prompt_cache_mb", "decode", "pinned_memory"}
        ),
        "batch": model.batch.model_dump(),
        "device": device_class(device),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "guidance_scale_2": model.video.guidance_scale_2,
        "pipeline": _settings(pipeline),
        "components": {name: _settings(part) for name, part in pipeline.components.items()},
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            digest.update(name.encode())
            _add_weights(digest, component)
    return digest.hexdigest()[:16]


def device_class(device: torch.device) -> str:
    """Devices of one class compute the same bits, about as fast."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{device.type} {platform.machine()} {capability} x{threads}"


def _settings(part: Any) -> Any:
    """Its class and its configuration, without where it was loaded from and with what."""
    config = getattr(part, "config", part)
    values = config if isinstance(config, Mapping) else getattr(config, "to_dict", dict)()
    public = {name: value for name, value in values.items() if not name.startswith("_")}
    return [type(part).__name__, public]


def _add_weights(digest: Any, module: torch.nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type == "meta":  # offloaded; its name and shape must do
            continue
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() // SAMPLES_PER_TENSOR)
        sample = flat[::stride][:SAMPLES_PER_TENSOR].float().cpu()
        digest.update(sample.numpy().tobytes())
