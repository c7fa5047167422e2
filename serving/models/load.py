"""From a catalog entry to a loaded family: the weights, and where on the device they go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from serving.models.compiled import compile_blocks, shapes
from serving.models.family import Family, Inputs
from serving.models.fingerprint import fingerprint
from serving.models.wan import WanFamily
from serving.models.wan_inputs import inputs_of
from serving.models.weights import find_device, find_weights
from serving.plan.catalog import InputName, LoadOptions, Model, Need
from serving.plan.clip import ClipSpec
from serving.plan.errors import ConfigError

PIPELINES = {
    "WanPipeline": "WanPipeline",
    "WanVideoToVideoPipeline": "WanPipeline",  # the same parts, to be called with a video
    "WanImageToVideoPipeline": "WanImageToVideoPipeline",
}
"""What a checkpoint says it is, and the diffusers class that holds its parts for us."""


def load_family(model: Model, models_dir: Path) -> Family:
    """Load the weights of a catalog entry and put them on the device it asks for.

    Raises :class:`ConfigError` when there are no weights, no such device, or the checkpoint
    is of another architecture; the message says how to mend it.
    """
    match model.family:
        case "wan":
            return _load_wan(model, models_dir)


def device_of(model: Model) -> torch.device:
    """The device the entry asks for; :class:`ConfigError` where there is none."""
    return find_device(model.id, model.load.device)


def _load_wan(model: Model, models_dir: Path) -> WanFamily:
    source, revision = find_weights(model.id, model.weights, models_dir, holds="model_index.json")
    options = model.load
    device = device_of(model)
    try:
        kind = _pipeline_class(model, source, revision)
        pipeline = kind.from_pretrained(source, revision=revision, dtype=_dtypes(options, kind))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model '{model.id}': cannot load a Wan checkpoint from {source}: {error}"
        ) from error
    return family_of(model, pipeline, device)


def family_of(model: Model, pipeline: Any, device: torch.device) -> WanFamily:
    """A Wan pipeline that is on no device yet, with the entry's options, on this one.

    Raises :class:`ConfigError` where the entry says of the checkpoint what is not so, or asks for
    what cannot be done here.
    """
    options = model.load
    try:
        family = WanFamily(
            pipeline,
            device=device,
            prompt_tokens=options.prompt_tokens,
            prompt_cache_bytes=options.prompt_cache_mb * 1_000_000,
            text_states_bytes=options.text_states_bytes,
            chunked_decode=options.chunked_decode,
            fingerprint=fingerprint(model, pipeline, device),
            batch=model.batch,
            decode_beside=options.decode_beside(device.type),
            guidance_scale_2=model.video.guidance_scale_2,
            inputs=model.video.inputs,
        )
    except ConfigError as error:
        raise ConfigError(f"model '{model.id}': {error.message}") from error
    _check_scale(model, pipeline)
    _check_inputs(model, pipeline)
    for transformer in _transformers(pipeline):
        tune(model, transformer)
    if options.vae_tiling:
        pipeline.vae.enable_tiling()
    _place(pipeline, options, device)
    if model.preview is not None:
        family.fit_previews()
    if options.compile:
        _warm_up(family, model)
    return family


def _pipeline_class(model: Model, source: str, revision: str | None) -> Any:
    """The class that reads this checkpoint, by the name the checkpoint gives itself."""
    name = diffusers.DiffusionPipeline.load_config(source, revision=revision).get("_class_name")
    if name not in PIPELINES:
        raise ConfigError(
            f"model '{model.id}': {source} holds a {name}; the family wan reads "
            f"{', '.join(PIPELINES)}"
        )
    return getattr(diffusers, PIPELINES[name])


def _dtypes(options: LoadOptions, kind: Any) -> dict[str, torch.dtype]:
    dtypes = {
        "default": getattr(torch, options.dtype),
        "vae": getattr(torch, options.vae_dtype),
    }
    if kind.__name__ == "WanImageToVideoPipeline":
        # What an image encoder sees decides the whole clip, and it runs once.
        dtypes["image_encoder"] = torch.float32
    return dtypes


def _transformers(pipeline: Any) -> list[Any]:
    return [part for part in (pipeline.transformer, pipeline.transformer_2) if part is not None]


def tune(model: Model, transformer: Any) -> None:
    """Give a transformer the attention and the compiled blocks that the entry asks for.

    Raises :class:`ConfigError` for an attention backend that cannot be used here.
    """
    if model.load.attention:
        _set_attention(model, transformer, model.load.attention)
    if model.load.compile:
        compile_blocks(transformer, shapes=shapes(model))


def _set_attention(model: Model, transformer: Any, backend: str) -> None:
    try:
        transformer.set_attention_backend(backend)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"model '{model.id}': load.attention '{backend}' cannot be used here: {error}"
        ) from error


def _warm_up(family: WanFamily, model: Model) -> None:
    """One step of the shape most clips have: its first job need not wait for the compiler, and
    blocks that cannot be compiled stop the start instead of failing every job."""
    spec = ClipSpec.resolve(model, prompt="a clip", seed=0)
    grey = np.full((spec.render_height, spec.render_width, 3), 128, dtype=np.uint8)
    needed = {name for name, need in model.video.inputs.items() if need == "required"}
    inputs = Inputs(
        first_frame=grey if "first_frame" in needed else None,
        last_frame=grey if "last_frame" in needed else None,
    )
    family.step([family.begin(spec, inputs)])


def _place(pipeline: Any, options: LoadOptions, device: torch.device) -> None:
    match options.offload:
        case "none":
            pipeline.to(device)
        case "model":
            pipeline.enable_model_cpu_offload(device=device)
        case "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        case "group":
            streams = device.type == "cuda"
            pipeline.enable_group_offload(
                onload_device=device,
                offload_type="leaf_level",
                use_stream=streams,
                # The allocator then waits for the copy, instead of the CPU.
                record_stream=streams,
                low_cpu_mem_usage=not options.pinned_memory,
                # It is small beside the others, and these hooks take it to pieces: its encoder and
                # its decoder run by themselves, and not in the order in which they would prefetch.
                exclude_modules=["vae"],
            )


def _check_scale(model: Model, pipeline: Any) -> None:
    """The catalog states what API and estimates need without weights; hold it to the weights."""
    vae = pipeline.vae.config
    for transformer in _transformers(pipeline):
        facts = {
            "size_multiple": vae.scale_factor_spatial * transformer.config.patch_size[-1],
            "frame_multiple": vae.scale_factor_temporal,
        }
        for name, fact in facts.items():
            declared = getattr(model.video, name)
            if declared != fact:
                raise ConfigError(
                    f"model '{model.id}': video.{name} is {declared} in the catalog "
                    f"and {fact} in the checkpoint"
                )


def _check_inputs(model: Model, pipeline: Any) -> None:
    """The catalog may promise less than the checkpoint can, and must ask for what that needs."""
    declared, possible = model.video.inputs, inputs_of(pipeline)
    missing = [
        name
        for name, need in possible.items()
        if need == "required" and declared.get(name) != "required"
    ]
    if missing or declared.keys() - possible.keys():
        raise ConfigError(
            f"model '{model.id}': video.inputs is {_written(declared)} in the catalog and the "
            f"checkpoint takes {_written(possible)}; it may say less, but for what is required"
        )


def _written(inputs: Mapping[InputName, Need]) -> str:
    return "{" + ", ".join(f"{name}: {need}" for name, need in inputs.items()) + "}"
