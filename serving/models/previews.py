"""Previews: what a clip will show, seen through its latents without decoding them.

A VAE's latent channels are close to linear in the colours of the pixels they stand for, so one
matrix and a bias make a picture from a latent frame, thousands of times cheaper than the decoder.
They are fitted to the VAE that was loaded by least squares, over pictures made here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from serving.plan.errors import ConfigError

Picture = npt.NDArray[np.uint8]
"""One picture, uint8 [height, width, 3], RGB."""

PICTURES = 24
SIDE_PX = 96
"""Enough for the 48 channels of Wan 2.2's VAE; the demo's takes a second of one core for them."""
SEED = 20261120
RIDGE = 1e-6
"""Of the channels' mean variance: it only decides where a VAE leaves the answer open."""


@dataclass(frozen=True)
class LatentToRgb:
    """``rgb = weights.T @ latent + bias`` for each latent pixel, colours from 0 to 1."""

    weights: torch.Tensor
    """float32 [channels, 3]"""
    bias: torch.Tensor
    """float32 [3]"""

    def __call__(self, latents: torch.Tensor) -> Picture:
        """A picture of one latent frame [channels, height, width], one pixel for each of its.

        Latents that are not finite give some picture. Waits for the device.
        """
        rgb = torch.tensordot(latents.float(), self.weights, dims=([0], [0])) + self.bias
        pixels = rgb.nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
        picture: Picture = pixels.cpu().numpy()
        return picture


def fit_latent_to_rgb(
    encode: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor | None = None
) -> LatentToRgb:
    """The map with the least squared error over ``pictures``, on the device that encodes.

    ``encode`` takes pictures, float32 [pictures, 3, height, width] from 0 to 1, to their latents
    [pictures, channels, h, w], scaled as the model denoises them; a latent pixel is compared with
    the mean of the pixels it stands for. Raises :class:`ConfigError` if the VAE gives no numbers.
    """
    pictures = synthetic_pictures() if pictures is None else pictures
    latents = encode(pictures)
    if not torch.isfinite(latents).all():
        raise ConfigError(
            "the VAE's latents of plain pictures are not finite numbers: set load.vae_dtype to "
            "float32, or preview to null to go without"
        )
    x = _columns(latents)
    height, width = latents.shape[-2:]
    y = _columns(F.adaptive_avg_pool2d(pictures, (height, width)))
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    # A channel that never moves must not stop the fit, not even if none does.
    ridge = RIDGE * gram.diagonal().mean() + torch.finfo(torch.double).tiny
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), x.T @ y)
    bias = y_mean - x_mean @ weights
    return LatentToRgb(weights.float().to(latents.device), bias.float().to(latents.device))


def _columns(pictures: torch.Tensor) -> torch.Tensor:
    """[pictures, channels, height, width] as float64 [pixels, channels] on the CPU."""
    return pictures.movedim(1, -1).flatten(0, -2).double().cpu()


def synthetic_pictures(
    count: int = PICTURES, side_px: int = SIDE_PX, seed: int = SEED
) -> torch.Tensor:
    """Pictures of every colour and of several scales, float32 [count, 3, side, side], 0 to 1.

    A gradient, over it noise from as coarse as half the picture to as fine as a pixel or two, over
    it rectangles and discs. The same arguments give the same pictures.
    """
    draw = np.random.default_rng(seed)
    down, across = np.mgrid[0:side_px, 0:side_px] / side_px
    pictures = []
    for index in range(count):
        angle = draw.uniform(0, 2 * np.pi)
        slope = 0.5 + (across - 0.5) * np.cos(angle) + (down - 0.5) * np.sin(angle)
        start, end = draw.uniform(size=(2, 3, 1, 1))
        picture = start + (end - start) * np.clip(slope, 0, 1)
        picture += draw.uniform(0, 0.5) * _noise(draw, side_px, cells=2 << index % 6)
        for shape in range(index % 4):
            centre, size = draw.uniform(size=(2, 1, 1)), draw.uniform(0.05, 0.4)
            far = np.abs(np.stack([down, across]) - centre)
            inside = np.hypot(*far) < size if shape % 2 else far.max(0) < size
            picture = np.where(inside, draw.uniform(size=(3, 1, 1)), picture)
        pictures.append(np.clip(picture, 0, 1))
    return torch.from_numpy(np.stack(pictures)).float()


def _noise(draw: np.random.Generator, side_px: int, cells: int) -> npt.NDArray[np.float64]:
    """[3, side, side] around 0, smooth between ``cells`` by ``cells`` random values."""
    grid = torch.from_numpy(draw.normal(size=(1, 3, cells, cells)))
    smooth = F.interpolate(grid, (side_px, side_px), mode="bilinear", align_corners=False)
    noise: npt.NDArray[np.float64] = smooth[0].numpy()
    return noise
