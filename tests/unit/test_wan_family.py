"""The Wan family against diffusers' own pipeline, on the demo checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from serving.models.family import Denoising
from serving.models.load import load_family
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import HubWeights, LoadOptions, Model, PathWeights
from serving.plan.errors import ConfigError, InvalidOutput
from tests import wan
from tests.jobs import spec

TOLERANCE = 1e-4
CPU = torch.device("cpu")


def finished(family: WanFamily, **changes: Any) -> Denoising:
    run = family.begin(spec(**changes))
    while not run.done:
        family.step([run])
    return run


def pictures(family: WanFamily, run: Denoising) -> Any:
    return np.concatenate(list(family.decode(run)))


@pytest.mark.parametrize("make", [tiny_pipeline, wan.ti2v])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_latents_and_pictures_equal_the_pipelines(
    make: Callable[[], WanPipeline], guidance_scale: float
) -> None:
    pipeline = make()
    pipeline.set_progress_bar_config(disable=True)
    family = WanFamily(pipeline, device=CPU, prompt_tokens=64)
    run = finished(family, guidance_scale=guidance_scale, negative_prompt="blur")
    arguments = {
        "prompt": run.spec.prompt,
        "negative_prompt": run.spec.negative_prompt,
        "height": 96,
        "width": 96,
        "num_frames": 9,
        "num_inference_steps": run.spec.steps,
        "guidance_scale": guidance_scale,
        "max_sequence_length": 64,
    }
    expected = pipeline(
        **arguments, generator=torch.Generator().manual_seed(1), output_type="latent"
    ).frames
    assert (run.latents - expected).abs().max() < TOLERANCE
    frames = pipeline(
        **arguments, generator=torch.Generator().manual_seed(1), output_type="np"
    ).frames[0]
    got = pictures(family, run)
    assert got.shape == (8, 96, 96, 3)
    assert np.abs(got.astype(float) - frames[:8] * 255).max() <= 1


def test_decoding_in_chunks_equals_decoding_at_once() -> None:
    pipeline = tiny_pipeline()
    run = finished(WanFamily(pipeline, device=CPU, prompt_tokens=64))
    whole = WanFamily(pipeline, device=CPU, prompt_tokens=64, chunked_decode=False)
    chunked = WanFamily(pipeline, device=CPU, prompt_tokens=64)
    assert len(list(chunked.decode(run))) == 3
    assert len(list(whole.decode(run))) == 1
    assert np.array_equal(pictures(whole, run), pictures(chunked, run))


def test_runs_side_by_side_do_not_share_a_solver() -> None:
    family = WanFamily(tiny_pipeline(), device=CPU, prompt_tokens=64)
    alone = finished(family, seed=3).latents
    first, second = family.begin(spec(seed=3)), family.begin(spec(seed=4, steps=7))
    while not first.done:
        family.step([second])
        family.step([first])
    assert torch.equal(first.latents, alone)


def test_a_batch_advances_every_run_in_one_forward() -> None:
    pipeline = tiny_pipeline()
    family = WanFamily(pipeline, device=CPU, prompt_tokens=64)
    forwards: list[int] = []
    pipeline.transformer.register_forward_hook(
        lambda module, inputs, output: forwards.append(output[0].shape[0])
    )
    runs = [family.begin(spec(seed=1)), family.begin(spec(seed=2, guidance_scale=1.0))]
    assert len({family.batch_key(run) for run in runs}) == 1
    while not runs[0].done:
        family.step(runs)
    assert forwards == [3] * 4
    for run, seed, scale in zip(runs, (1, 2), (5.0, 1.0), strict=True):
        alone = finished(family, seed=seed, guidance_scale=scale)
        assert (run.latents - alone.latents).abs().max() < TOLERANCE


def test_more_steps_than_the_training_schedule_has() -> None:
    family = WanFamily(tiny_pipeline(), device=CPU, prompt_tokens=8)
    run = finished(family, steps=1100, render_width=32, render_height=32, guidance_scale=1.0)
    assert torch.isfinite(run.latents).all()
    assert isinstance(run.scheduler, UniPCMultistepScheduler)


def test_latents_that_are_not_numbers_are_no_picture() -> None:
    family = WanFamily(tiny_pipeline(), device=CPU, prompt_tokens=8)
    run = family.begin(spec())
    run.latents[0, 0, 0, 0, 0] = float("inf")
    with pytest.raises(InvalidOutput):
        list(family.decode(run))


def load_with(model: Model, models_dir: Path, **changes: Any) -> Any:
    return load_family(model.model_copy(update=changes), models_dir)


def test_a_missing_checkpoint_says_how_to_get_it(demo_model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reelserve models install-demo"):
        load_family(demo_model, tmp_path)


def test_a_hub_that_cannot_be_reached_names_the_checkpoint(
    demo_model: Model, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="nobody/nothing"):
        load_with(demo_model, models_dir, weights=HubWeights(hub="nobody/nothing"))


def test_a_catalog_that_misstates_the_checkpoint_is_refused(
    demo_model: Model, models_dir: Path
) -> None:
    video = demo_model.video.model_copy(update={"frame_multiple": 8})
    with pytest.raises(ConfigError, match="frame_multiple is 8 in the catalog and 4"):
        load_with(demo_model, models_dir, video=video)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "native"},
        {"vae_tiling": True},
        {"dtype": "bfloat16"},
        {"offload": "group"},
    ],
)
def test_load_options_take_effect_and_still_make_pictures(
    demo_model: Model, models_dir: Path, options: dict[str, Any]
) -> None:
    load = LoadOptions(**{"dtype": "float32", "device": "cpu", "prompt_tokens": 16, **options})
    weights = PathWeights(path=str(models_dir / "demo-wan"))
    family = load_with(demo_model, models_dir, load=load, weights=weights)
    run = finished(family, steps=2)
    assert run.prompt.dtype == getattr(torch, load.dtype)
    assert pictures(family, run).shape == (8, 96, 96, 3)
