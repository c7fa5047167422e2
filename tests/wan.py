"""Tiny Wan checkpoints of every kind, with random weights, for the tests of the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from serving.models.family import NO_INPUTS, Denoising, Inputs
from serving.models.load import load_family
from serving.models.tiny import LATENT_CHANNELS, TEXT_CHANNELS, tiny_pipeline
from serving.models.wan import WanFamily
from serving.models.wan_inputs import inputs_of
from serving.plan.catalog import BatchPolicy, LoadOptions, Model, PathWeights
from serving.plan.clip import ClipSpec
from tests.jobs import spec

SIDE = 32
FRAMES = 9
"""What the model renders for the eight frames of a clip."""
STEPS = 4
IMAGE_CHANNELS = 32
IMAGE_TOKENS = 5


def small(**changes: Any) -> ClipSpec:
    """Eight frames of 32x32 in four steps."""
    sides = dict.fromkeys(("width", "height", "render_width", "render_height"), SIDE)
    return spec(**{**sides, "steps": STEPS, "negative_prompt": "blur", **changes})


def picture(seed: int, height: int = 40, width: int = 56) -> Any:
    """Noise, at a size that no model works at."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def video(frames: int = FRAMES) -> Any:
    return np.stack([picture(seed) for seed in range(frames)])


def transformer(seed: int, **changes: Any) -> WanTransformer3DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WanTransformer3DModel(
            **{
                "patch_size": (1, 2, 2),
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": LATENT_CHANNELS,
                "out_channels": LATENT_CHANNELS,
                "text_dim": TEXT_CHANNELS,
                "freq_dim": 32,
                "ffn_dim": 48,
                "num_layers": 2,
                **changes,
            }
        )
        for name, parameter in model.named_parameters():
            if name.endswith("pos_embed"):  # made of zeros, and a checkpoint's are not
                torch.nn.init.normal_(parameter)
    return model.eval()


def _parts(**changes: Any) -> dict[str, Any]:
    parts = {
        name: part for name, part in tiny_pipeline().components.items() if name != "transformer_2"
    }
    return {**parts, "transformer": transformer(1), **changes}


def text() -> WanPipeline:
    """As Wan 2.1 T2V."""
    return WanPipeline(**_parts())


def text_of_two() -> WanPipeline:
    """As Wan 2.2 T2V A14B."""
    return WanPipeline(**_parts(transformer_2=transformer(2)), boundary_ratio=0.875)


def ti2v() -> WanPipeline:
    """As Wan 2.2 TI2V: a timestep for every token, a VAE that packs 2x2 pixels more."""
    return WanPipeline(**_parts(vae=_ti2v_vae()), expand_timesteps=True)


def ti2v_from_picture() -> WanImageToVideoPipeline:
    """The same parts under the pipeline that diffusers starts from a picture with."""
    return WanImageToVideoPipeline(**_parts(vae=_ti2v_vae()), expand_timesteps=True)


def _ti2v_vae() -> AutoencoderKLWan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=LATENT_CHANNELS,
            num_res_blocks=1,
            patch_size=2,
            in_channels=12,
            out_channels=12,
            scale_factor_spatial=16,
            is_residual=True,
        )
    return vae.eval()


PICTURE_CHANNELS = {"in_channels": 2 * LATENT_CHANNELS + 4}


def picture_of_two() -> WanImageToVideoPipeline:
    """As Wan 2.2 I2V A14B: no image encoder."""
    first, second = transformer(1, **PICTURE_CHANNELS), transformer(2, **PICTURE_CHANNELS)
    return WanImageToVideoPipeline(
        **_parts(transformer=first, transformer_2=second), boundary_ratio=0.9
    )


def picture_seen() -> WanImageToVideoPipeline:
    """As Wan 2.1 I2V: with an image encoder."""
    return _seen()


def pictures_seen() -> WanImageToVideoPipeline:
    """As Wan 2.1 FLF2V: with an image encoder for two pictures."""
    return _seen(pos_embed_seq_len=2 * IMAGE_TOKENS)


def _seen(**changes: Any) -> WanImageToVideoPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=IMAGE_CHANNELS,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
            )
        )
    side = {"height": 16, "width": 16}
    return WanImageToVideoPipeline(
        **_parts(
            transformer=transformer(
                1, **PICTURE_CHANNELS, image_dim=IMAGE_CHANNELS, added_kv_proj_dim=24, **changes
            ),
            image_encoder=encoder.eval(),
            image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side),
        )
    )


def prompt_tokens(pipeline: Any) -> int:
    """Few, but for checkpoints with an image encoder, which have no choice."""
    return 16 if pipeline.transformer.config.image_dim is None else 512


def family_of(pipeline: Any, **changes: Any) -> WanFamily:
    """The family over a pipeline that was never saved: for what loading cannot change."""
    return WanFamily(
        pipeline,
        device=torch.device("cpu"),
        prompt_tokens=prompt_tokens(pipeline),
        **{"batch": BatchPolicy(rows=8), **changes},
    )


def saved(pipeline: Any, demo: Model, folder: Path, **changes: Any) -> Model:
    """A catalog entry for this pipeline, saved in ``folder``; the catalog's words are the demo's
    but for what the checkpoint needs."""
    pipeline.save_pretrained(folder)
    limits = {"size_multiple": 2 * pipeline.vae.config.scale_factor_spatial}
    if not isinstance(pipeline, WanVideoToVideoPipeline):
        limits["inputs"] = inputs_of(pipeline)
    limits |= changes.pop("video", {})
    options = {"dtype": "float32", "device": "cpu", "prompt_tokens": prompt_tokens(pipeline)}
    options |= changes.pop("load", {})
    return demo.model_copy(
        update={
            "weights": PathWeights(path=str(folder)),
            "load": LoadOptions(**options),
            "video": demo.video.model_copy(update=limits),
            **changes,
        }
    )


def loaded(pipeline: Any, demo: Model, folder: Path, **changes: Any) -> WanFamily:
    """This pipeline's weights through the code that loads released ones."""
    family = load_family(saved(pipeline, demo, folder, **changes), folder)
    assert isinstance(family, WanFamily)
    return family


def finished(family: WanFamily, wanted: ClipSpec, inputs: Inputs = NO_INPUTS) -> Denoising:
    run = family.begin(wanted, inputs)
    while not run.done:
        family.step([run])
    return run


def expected(pipeline: Any, wanted: ClipSpec, **arguments: Any) -> Any:
    """The latents diffusers' own pipeline comes to, for the same request."""
    pipeline.set_progress_bar_config(disable=True)
    if "video" in arguments:
        arguments["video"] = [Image.fromarray(frame) for frame in arguments["video"]]
    else:
        arguments["num_frames"] = FRAMES
    for name in ("image", "last_image"):
        if name in arguments:
            arguments[name] = Image.fromarray(arguments[name])
    return pipeline(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        height=wanted.render_height,
        width=wanted.render_width,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        generator=torch.Generator().manual_seed(wanted.seed),
        max_sequence_length=prompt_tokens(pipeline),
        output_type="latent",
        **arguments,
    ).frames
