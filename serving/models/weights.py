"""Where a catalog entry's weights are, and the device that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from serving.plan.catalog import HubWeights, PathWeights
from serving.plan.errors import ConfigError


def find_weights(
    model: str, weights: HubWeights | PathWeights, models_dir: Path, *, holds: str
) -> tuple[str, str | None]:
    """What ``from_pretrained`` is given: a folder or a hub id, and a revision.

    :class:`ConfigError` for a folder without the file ``holds``, which every such checkpoint has.
    """
    if isinstance(weights, HubWeights):
        return weights.hub, weights.revision
    folder = Path(weights.path.format(models_dir=models_dir)).expanduser()
    if not (folder / holds).is_file():
        hint = (
            "; `reelserve models install-demo` puts it there" if model.startswith("demo-") else ""
        )
        raise ConfigError(f"model '{model}': there is no checkpoint in {folder}{hint}")
    return str(folder), None


def load_whole(kind: Any, source: str, revision: str | None, dtype: str) -> Any:
    """``kind.from_pretrained``, to infer with. :class:`ConfigError` for a checkpoint that lacks
    weights, which transformers would draw at random."""
    module, found = kind.from_pretrained(
        source, revision=revision, dtype=getattr(torch, dtype), output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(f"it lacks {len(missing)} weights, such as {missing[0]}")
    return module.eval()


def find_device(model: str, name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU where there is one. :class:`ConfigError` where
    there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"model '{model}' asks for the device {name} and this machine has no CUDA GPU"
        )
    return device
