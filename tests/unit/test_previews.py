"""Previews: the linear map from latents to colours, and what a run shows by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler

from serving.models.family import Denoising
from serving.models.load import load_family
from serving.models.previews import LatentToRgb, fit_latent_to_rgb, synthetic_pictures
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import LoadOptions, Model, PathWeights
from serving.plan.errors import ConfigError
from tests.jobs import spec

CPU = torch.device("cpu")
HELD_OUT = 7


class LinearVae:
    """Latents that are a known linear map of an 8x8 block's mean colour, some noise beside it."""

    def __init__(self, channels: int = 16) -> None:
        draw = torch.Generator().manual_seed(3)
        self.mixing = torch.randn(channels, 3, generator=draw)
        self.offset = torch.randn(channels, generator=draw)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        blocks = F.avg_pool2d(pictures, 8)
        mixed = torch.einsum("cr,nrhw->nchw", self.mixing, blocks)
        return mixed + self.offset[:, None, None]


def colours(fitted: LatentToRgb, latents: torch.Tensor) -> Any:
    """The map's answer before it becomes bytes, [pictures, 3, h, w]."""
    rgb = torch.einsum("nchw,cr->nrhw", latents, fitted.weights)
    return (rgb + fitted.bias[:, None, None]).numpy()


def pooled(pictures: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    height, width = latents.shape[-2:]
    return F.adaptive_avg_pool2d(pictures, (height, width))


@pytest.fixture(scope="module")
def family() -> WanFamily:
    made = WanFamily(tiny_pipeline(), device=CPU, prompt_tokens=16)
    made.fit_previews()
    return made


def finished(family: WanFamily, *, look: bool = False, **changes: Any) -> Denoising:
    run = family.begin(spec(**changes))
    while not run.done:
        family.step([run])
        if look:
            family.preview(run)
    return run


def test_a_linear_vae_is_seen_through_exactly() -> None:
    vae = LinearVae()
    fitted = fit_latent_to_rgb(vae.encode)
    pictures = synthetic_pictures(4, seed=HELD_OUT)
    latents = vae.encode(pictures)
    for each, latent in zip(F.avg_pool2d(pictures, 8), latents, strict=True):
        expected = (each * 255).round().movedim(0, -1).numpy()
        assert np.abs(fitted(latent).astype(float) - expected).max() <= 1


def test_the_fit_is_the_least_squares_one(family: WanFamily) -> None:
    pictures = synthetic_pictures()
    latents = family._decoder.encode_stills(pictures)
    wanted = pooled(pictures, latents)
    x = latents.movedim(1, -1).flatten(0, -2).double().numpy()
    y = wanted.movedim(1, -1).flatten(0, -2).double().numpy()
    ones = np.ones((len(x), 1))
    solution = np.linalg.lstsq(np.hstack([x, ones]), y, rcond=None)[0]
    got = colours(family.fit_previews(), latents).transpose(0, 2, 3, 1).reshape(-1, 3)
    assert np.abs(got - np.hstack([x, ones]) @ solution).max() < 1e-3


def test_pictures_it_never_saw_come_out_no_worse_than_one_colour(family: WanFamily) -> None:
    pictures = synthetic_pictures(24, seed=HELD_OUT)
    latents = family._decoder.encode_stills(pictures)
    wanted = pooled(pictures, latents).numpy()
    error = np.square(colours(family.fit_previews(), latents) - wanted).mean()
    constant = np.square(wanted.mean((0, 2, 3), keepdims=True) - wanted).mean()
    assert error < constant


def test_channels_that_never_move_do_not_stop_the_fit() -> None:
    vae = LinearVae()

    def half_dead(pictures: torch.Tensor) -> torch.Tensor:
        latents = vae.encode(pictures)
        latents[:, 8:] = 1.0
        return latents

    assert fit_latent_to_rgb(half_dead)(torch.zeros(16, 5, 4)).shape == (5, 4, 3)
    dead = fit_latent_to_rgb(lambda pictures: torch.zeros(len(pictures), 16, 4, 4))
    assert np.ptp(dead(torch.randn(16, 5, 4)), axis=(0, 1)).max() == 0


def test_a_vae_that_gives_no_numbers_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="vae_dtype"):
        fit_latent_to_rgb(lambda pictures: torch.full((len(pictures), 16, 4, 4), float("nan")))


def test_latents_that_are_not_numbers_still_make_a_picture() -> None:
    latents = torch.full((16, 2, 2), float("nan"))
    latents[:, 0, 0] = float("inf")
    assert fit_latent_to_rgb(LinearVae().encode)(latents).dtype == np.uint8


def test_looking_changes_no_bit_of_a_clip(family: WanFamily) -> None:
    assert torch.equal(finished(family, look=True).latents, finished(family).latents)


def test_a_preview_shows_the_middle_latent_frame_a_pixel_each(family: WanFamily) -> None:
    run = family.begin(spec(width=128, render_width=128))
    family.step([run])
    assert family.preview(run).shape == (12, 16, 3)
    before = family.preview(run)
    assert run.seen is not None
    run.seen[0][:, :, 0] += 1.0
    assert np.array_equal(family.preview(run), before)
    run.seen[0][:, :, run.latents.shape[2] // 2] += 1.0
    assert not np.array_equal(family.preview(run), before)


@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_a_preview_is_where_the_last_step_saw_the_clip_end(solver: str) -> None:
    pipeline = tiny_pipeline()
    if solver == "euler":
        pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    family = WanFamily(pipeline, device=CPU, prompt_tokens=16)
    run = finished(family, steps=3)
    # The last step goes to the end of the flow, so what it saw is what it made.
    shown = family.preview(run).astype(float)
    run.seen = None
    assert np.ptp(shown) > 0
    assert np.abs(shown - family.preview(run)).max() <= 1


@pytest.mark.parametrize(
    "options", [{"vae_tiling": True}, {"offload": "group"}, {"offload": "model"}]
)
def test_previews_leave_tiling_and_offload_as_they_were(
    demo_model: Model, models_dir: Path, options: dict[str, Any]
) -> None:
    load = LoadOptions(dtype="float32", device="cpu", prompt_tokens=16, **options)
    weights = PathWeights(path=str(models_dir / "demo-wan"))
    latents, frames = [], []
    for preview in (demo_model.preview, None):
        model = demo_model.model_copy(update={"load": load, "weights": weights, "preview": preview})
        family = load_family(model, models_dir)
        assert isinstance(family, WanFamily)
        run = finished(family, look=preview is not None, steps=2)
        latents.append(run.latents)
        frames.append(np.concatenate(list(family.decode(run))))
    assert torch.equal(latents[0], latents[1])
    assert np.array_equal(frames[0], frames[1])
