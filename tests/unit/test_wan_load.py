"""Loading holds the catalog and the checkpoint together, part by part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from serving.models.family import Inputs
from serving.models.fingerprint import fingerprint
from serving.models.load import load_family
from serving.models.wan import WanFamily
from serving.plan.catalog import Model, VideoLimits
from serving.plan.errors import ConfigError
from tests import wan
from tests.wan import small

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("make", "video", "words"),
    [
        (wan.text, {"inputs": {"first_frame": "optional"}}, r"checkpoint takes {video: optional}"),
        (wan.picture_of_two, {"inputs": {}}, r"takes {first_frame: required, last_frame: opt"),
        (wan.picture_seen, {"inputs": {"first_frame": "optional"}}, r"{first_frame: required}"),
        (wan.text, {"guidance_scale_2": 3.0}, "guidance_scale_2 is for two transformers"),
        (wan.ti2v, {"size_multiple": 16}, "size_multiple is 16 in the catalog and 32"),
    ],
)
def test_a_catalog_that_misstates_the_checkpoint_is_refused(
    make: Any, video: dict[str, Any], words: str, demo_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        wan.loaded(make(), demo_model, tmp_path, video=video)
    assert "demo-wan" in caught.value.message


@pytest.mark.parametrize("inputs", [{}, {"video": "required"}])
def test_a_catalog_may_offer_less_than_the_checkpoint_can(
    inputs: dict[str, Any], demo_model: Model, tmp_path: Path
) -> None:
    assert wan.loaded(wan.text(), demo_model, tmp_path, video={"inputs": inputs})


def test_an_image_encoder_wants_all_the_text_tokens(demo_model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"load\.prompt_tokens must be 512"):
        wan.loaded(wan.picture_seen(), demo_model, tmp_path, load={"prompt_tokens": 226})


def test_a_checkpoint_of_another_architecture_is_named(demo_model: Model, tmp_path: Path) -> None:
    model = wan.saved(wan.text(), demo_model, tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "LTX2Pipeline"}))
    with pytest.raises(ConfigError, match="holds a LTX2Pipeline; the family wan reads WanPipel"):
        load_family(model, tmp_path)


def parts_of(pipeline: Any, **changes: Any) -> dict[str, Any]:
    return {**pipeline.components, **changes}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: WanPipeline(**parts_of(wan.text(), transformer_2=wan.transformer(2))),
            "transformer_2: True, boundary_ratio: None",
        ),
        (lambda: WanPipeline(**wan.text().components, boundary_ratio=0.9), "boundary_ratio: 0.9"),
        (
            lambda: WanImageToVideoPipeline(**wan.text().components),
            "36 input channels for a VAE with 16; this one has 16",
        ),
        (
            lambda: WanPipeline(
                **parts_of(wan.text(), transformer=wan.transformer(1, in_channels=36))
            ),
            "16 input channels for a VAE with 16; this one has 36",
        ),
        (
            lambda: WanImageToVideoPipeline(**parts_of(wan.picture_seen(), image_encoder=None)),
            "there is no encoder",
        ),
        (
            lambda: WanPipeline(**parts_of(wan.text(), transformer=None)),
            "has no transformer",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WanFamily(make(), device=CPU, prompt_tokens=16)


@pytest.mark.parametrize(
    "load",
    [
        {"attention": "_native_math"},
        {"offload": "group"},
        {"offload": "group", "pinned_memory": False},
        {"vae_tiling": True},
    ],
)
def test_load_options_reach_every_part_and_keep_the_numbers(
    load: dict[str, Any], demo_model: Model, tmp_path: Path
) -> None:
    """Two transformers, and the VAE's encoder, which only pictures need."""
    inputs = Inputs(first_frame=wan.picture(1))
    pipeline = wan.picture_of_two()
    plain = wan.loaded(pipeline, demo_model, tmp_path)
    family = wan.loaded(pipeline, demo_model, tmp_path, load=load)
    assert family.fingerprint != plain.fingerprint
    want = wan.finished(plain, small(), inputs).latents
    assert (wan.finished(family, small(), inputs).latents - want).abs().max() < 1e-4


def test_group_offload_leaves_the_vae_where_it_decodes_in_chunks(
    demo_model: Model, tmp_path: Path
) -> None:
    family = wan.loaded(wan.text(), demo_model, tmp_path, load={"offload": "group"})
    whole = wan.loaded(wan.text(), demo_model, tmp_path, load={"vae_tiling": True})
    run = wan.finished(family, small(steps=1))
    chunks = list(family.decode(run))
    assert [len(chunk) for chunk in chunks] == [1, 4, 3]
    pictures = np.concatenate(list(whole.decode(run)))
    assert np.array_equal(np.concatenate(chunks), pictures)


def test_an_attention_backend_is_set_on_both_transformers(
    demo_model: Model, tmp_path: Path
) -> None:
    family = wan.loaded(wan.text_of_two(), demo_model, tmp_path, load={"attention": "_native_math"})
    for transformer in (family._transformer, family._low_noise_transformer):
        backends = {
            str(module.processor._attention_backend)
            for module in transformer.modules()
            if hasattr(module, "processor")
        }
        assert len(backends) == 1
        assert "math" in backends.pop().lower()


def test_an_attention_backend_that_is_not_there_is_named(demo_model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"demo-wan.*load\.attention.*no_such"):
        wan.loaded(wan.text(), demo_model, tmp_path, load={"attention": "no_such"})


def test_bfloat16_leaves_the_image_encoder_in_float32(demo_model: Model, tmp_path: Path) -> None:
    family = wan.loaded(wan.picture_seen(), demo_model, tmp_path, load={"dtype": "bfloat16"})
    run = wan.finished(family, small(), Inputs(first_frame=wan.picture(1)))
    assert family._pipeline.image_encoder.dtype == torch.float32
    assert {run.prompt.dtype, run.condition.dtype, run.image_embeds.dtype} == {torch.bfloat16}  # type: ignore[union-attr]
    assert torch.isfinite(run.latents).all()


def test_fingerprints_tell_apart_what_decides_the_bits(demo_model: Model) -> None:
    def print_of(pipeline: Any, **video: Any) -> str:
        limits = VideoLimits.model_validate({**demo_model.video.model_dump(), **video})
        return fingerprint(demo_model.model_copy(update={"video": limits}), pipeline, CPU)

    two = wan.text_of_two()
    first = print_of(two)
    assert print_of(wan.text_of_two()) == first
    assert print_of(two, guidance_scale_2=3.0) != first
    assert print_of(WanPipeline(**two.components, boundary_ratio=0.9)) != first
    other = parts_of(two, transformer_2=wan.transformer(3))
    assert print_of(WanPipeline(**other, boundary_ratio=0.875)) != first
    seen = wan.picture_seen()
    first = print_of(seen)
    assert print_of(wan.picture_seen()) == first
    seen.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert print_of(seen) != first
