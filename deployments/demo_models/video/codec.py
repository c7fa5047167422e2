"""The video codec: a small ``AutoencoderKLWan`` like that of Wan 2.2's TI2V, 16x16 pixels and 4
frames to a latent, and the whole-clip passes by which it is trained.

The library encodes four frames at a time and decodes one latent frame at a time, with a cache for
its causal convolutions. Over a whole clip at once the arithmetic is the same (a test holds the two
together) and training several times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify

PATCH = 4
LATENT_CHANNELS = 24
SPATIAL, TEMPORAL = 16, 4


def new_codec() -> AutoencoderKLWan:
    """With random weights."""
    codec: AutoencoderKLWan = AutoencoderKLWan(
        base_dim=24,
        decoder_base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        scale_factor_temporal=TEMPORAL,
        scale_factor_spatial=SPATIAL,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    return codec


def encode(codec: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """[clips, 3, frames, height, width] from -1 to 1 to the latents' means, whole clips at once:
    [clips, channels, latent frames, height / 16, width / 16]. ``frames`` is 1 more than a
    multiple of 4."""
    with _whole_clips():
        hidden = codec.quant_conv(codec.encoder(patchify(pixels, PATCH)))
    mean: torch.Tensor = hidden.chunk(2, dim=1)[0]
    return mean


def decode(codec: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`encode`; not clamped."""
    with _whole_clips():
        hidden = codec.decoder(codec.post_quant_conv(latents), first_chunk=True)
    pixels: torch.Tensor = unpatchify(hidden, PATCH)
    return pixels


@contextmanager
def _whole_clips() -> Iterator[None]:
    chunked = WanResample.forward
    WanResample.forward = _resample_whole
    try:
        yield
    finally:
        WanResample.forward = chunked


def _resample_whole(
    self: Any, x: torch.Tensor, feat_cache: None = None, feat_idx: Any = None
) -> torch.Tensor:
    """The first frame is not resampled in time; the others are, two to one or one to two."""
    clips, channels, frames, height, width = x.shape
    if self.mode == "upsample3d" and frames > 1:
        twice = self.time_conv(x[:, :, 1:])
        twice = (
            twice.view(clips, 2, channels, frames - 1, height, width).movedim(1, 3).flatten(2, 3)
        )
        x = torch.cat([x[:, :, :1], twice], dim=2)
    frames = x.shape[2]
    x = self.resample(x.transpose(1, 2).flatten(0, 1))
    x = x.view(clips, frames, *x.shape[1:]).transpose(1, 2)
    if self.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
    return x
