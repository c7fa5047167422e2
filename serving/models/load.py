"""From a catalog entry to a loaded family: the weights, and where on the device they go."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanPipeline

from serving.models.family import Family
from serving.models.fingerprint import fingerprint
from serving.models.wan import WanFamily
from serving.plan.catalog import HubWeights, Model
from serving.plan.errors import ConfigError


def load_family(model: Model, models_dir: Path) -> Family:
    """Load the weights of a catalog entry and put them on the device it asks for.

    Raises :class:`ConfigError` when there are no weights, no such device, or the checkpoint
    is of another architecture; the message says how to mend it.
    """
    match model.family:
        case "wan":
            return _load_wan(model, models_dir)


def weights_source(model: Model, models_dir: Path) -> tuple[str, str | None]:
    """What ``from_pretrained`` is given: a folder or a hub id, and a revision."""
    weights = model.weights
    if isinstance(weights, HubWeights):
        return weights.hub, weights.revision
    folder = Path(weights.path.format(models_dir=models_dir)).expanduser()
    if not (folder / "model_index.json").is_file():
        hint = "; `reelserve models build-demo` makes it" if model.id.startswith("demo-") else ""
        raise ConfigError(f"model '{model.id}': there is no checkpoint in {folder}{hint}")
    return str(folder), None


def device_of(model: Model) -> torch.device:
    """The device the entry asks for; ``auto`` is a GPU where there is one."""
    name = model.load.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"model '{model.id}' asks for the device {name} and this machine has no CUDA GPU"
        )
    return device


def _load_wan(model: Model, models_dir: Path) -> WanFamily:
    source, revision = weights_source(model, models_dir)
    options = model.load
    device = device_of(model)
    dtype = getattr(torch, options.dtype)
    try:
        pipeline = WanPipeline.from_pretrained(
            source,
            revision=revision,
            dtype={"default": dtype, "vae": getattr(torch, options.vae_dtype)},
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model '{model.id}': cannot load a Wan checkpoint from {source}: {error}"
        ) from error
    _check_scale(model, pipeline)
    if options.attention:
        pipeline.transformer.set_attention_backend(options.attention)
    if options.vae_tiling:
        pipeline.vae.enable_tiling()
    match options.offload:
        case "none":
            pipeline.to(device)
        case "model":
            pipeline.enable_model_cpu_offload(device=device)
        case "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        case "group":
            pipeline.enable_group_offload(
                onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda"
            )
    return WanFamily(
        pipeline,
        device=device,
        prompt_tokens=options.prompt_tokens,
        chunked_decode=options.chunked_decode,
        fingerprint=fingerprint(model, pipeline, device),
        batch=model.batch,
    )


def _check_scale(model: Model, pipeline: WanPipeline) -> None:
    """The catalog states what API and estimates need without weights; hold it to the weights."""
    vae, patch = pipeline.vae.config, pipeline.transformer.config.patch_size
    facts = {
        "size_multiple": vae.scale_factor_spatial * patch[-1],
        "frame_multiple": vae.scale_factor_temporal,
    }
    for name, fact in facts.items():
        declared = getattr(model.video, name)
        if declared != fact:
            raise ConfigError(
                f"model '{model.id}': video.{name} is {declared} in the catalog "
                f"and {fact} in the checkpoint"
            )
