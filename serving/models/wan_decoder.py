"""From latents to pictures and back, by Wan's VAE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from serving.models.family import Frames
from serving.models.previews import LatentToRgb, fit_latent_to_rgb


class WanDecoder:
    """``chunked`` decodes one latent frame at a time, which can be interrupted; it calls the
    decoder below the hooks of CPU offload and below tiling, so it must be off with either.
    """

    def __init__(self, vae: AutoencoderKLWan, device: torch.device, *, chunked: bool) -> None:
        self._vae = vae
        self._device = device
        self._chunked = chunked

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, frames: int) -> Iterator[Frames]:
        """The first ``frames`` pictures of normalised latents, in chunks."""
        mean, std = self._scale(latents := latents.to(self._device, self._vae.dtype))
        latents = latents * std + mean
        for chunk in self._by_frame(latents) if self._chunked else self._whole(latents):
            picture = (chunk.float() / 2 + 0.5).clamp(0, 1) * 255
            shown = picture[0].permute(1, 2, 3, 0).round().to(torch.uint8).cpu().numpy()
            yield np.ascontiguousarray(shown[:frames])
            frames -= min(frames, len(shown))
            if not frames:
                return

    def fit_previews(self) -> LatentToRgb:
        """Learn how to show latents without decoding them."""
        return fit_latent_to_rgb(self.encode_stills)

    @torch.no_grad()
    def encode_stills(self, pictures: torch.Tensor) -> torch.Tensor:
        """[pictures, 3, height, width] from 0 to 1, as [pictures, channels, h, w]."""
        # A still clip, of which the last latent frame counts: most of a clip's have a past.
        frames = 1 + self._vae.config.scale_factor_temporal
        clips = pictures[:, :, None].expand(-1, -1, frames, -1, -1)
        clips = (2 * clips - 1).to(self._device, self._vae.dtype)
        latents: torch.Tensor = self._vae.encode(clips).latent_dist.mode()[:, :, -1:].float()
        mean, std = self._scale(latents)
        return ((latents - mean) / std)[:, :, 0]

    def _scale(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation by channel, as the VAE knows them."""
        config = self._vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(shape).to(latents)
        return mean, torch.tensor(config.latents_std).view(shape).to(latents)

    def _whole(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        yield self._vae.decode(latents, return_dict=False)[0]

    def _by_frame(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """``AutoencoderKLWan.decode`` one latent frame at a time, with its causal cache ours."""
        vae: Any = self._vae
        cache: list[Any] = [None] * vae._cached_conv_counts["decoder"]
        hidden = vae.post_quant_conv(latents)
        for index in range(hidden.shape[2]):
            first = {"first_chunk": True} if index == 0 else {}
            chunk = vae.decoder(
                hidden[:, :, index : index + 1], feat_cache=cache, feat_idx=[0], **first
            )
            if vae.config.patch_size is not None:
                chunk = unpatchify(chunk, vae.config.patch_size)
            yield chunk
