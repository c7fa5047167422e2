"""The Wan family: text to video with Wan 2.1 and Wan 2.2 TI2V (arXiv:2503.20314).

The arithmetic is that of diffusers' ``WanPipeline``, and a test holds the two together; the
loop is ours, because a pipeline's loop can neither batch, nor stop, nor hand over its state.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.utils.torch_utils import randn_tensor

from serving.models.family import Denoising, Frames
from serving.plan.catalog import BatchPolicy
from serving.plan.clip import ClipSpec
from serving.plan.errors import ConfigError, InvalidOutput


class WanFamily:
    """A loaded ``WanPipeline`` used for its components.

    ``prompt_tokens`` is the length every prompt is padded to. ``chunked_decode`` decodes one
    latent frame at a time, which can be interrupted; it calls the decoder below the hooks of
    CPU offload and below tiling, so it must be off with either.
    """

    def __init__(
        self,
        pipeline: WanPipeline,
        *,
        device: torch.device,
        prompt_tokens: int,
        chunked_decode: bool = True,
        fingerprint: str = "",
        batch: BatchPolicy | None = None,
    ) -> None:
        if pipeline.transformer is None or pipeline.config.boundary_ratio is not None:
            raise ConfigError("Wan checkpoints with two transformers are not supported")
        self.fingerprint = fingerprint
        self._batch = batch or BatchPolicy()
        self._pipeline = pipeline
        self._transformer: WanTransformer3DModel = pipeline.transformer
        self._vae: AutoencoderKLWan = pipeline.vae
        self._device = device
        self._prompt_tokens = prompt_tokens
        self._chunked_decode = chunked_decode
        self._expand_timesteps = bool(pipeline.config.expand_timesteps)

    @torch.no_grad()
    def begin(self, spec: ClipSpec) -> Denoising:
        prompt, negative = self._pipeline.encode_prompt(
            spec.prompt,
            spec.negative_prompt,
            do_classifier_free_guidance=spec.guidance_scale > 1.0,
            max_sequence_length=self._prompt_tokens,
            device=self._device,
            dtype=self._transformer.dtype,
        )
        scheduler = type(self._pipeline.scheduler).from_config(self._pipeline.scheduler.config)
        scheduler.set_timesteps(spec.steps, device=self._device)
        # Without this the scheduler looks its index up by timestep, which costs a device
        # synchronisation and is ambiguous when there are more steps than training timesteps.
        scheduler.set_begin_index(0)
        return Denoising(
            spec=spec,
            latents=self._noise(spec),
            scheduler=scheduler,
            timesteps=scheduler.timesteps,
            prompt=prompt,
            negative_prompt=negative,
        )

    def _noise(self, spec: ClipSpec) -> torch.Tensor:
        config = self._vae.config
        frames = spec.render_frames(config.scale_factor_temporal)
        shape = (
            1,
            self._transformer.config.in_channels,
            (frames - 1) // config.scale_factor_temporal + 1,
            spec.render_height // config.scale_factor_spatial,
            spec.render_width // config.scale_factor_spatial,
        )
        # Drawn on the CPU, so that a seed means the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        noise: torch.Tensor = randn_tensor(
            shape, generator=generator, device=self._device, dtype=torch.float32
        )
        return noise

    def batch_key(self, run: Denoising) -> Hashable:
        return tuple(run.latents.shape)

    def rows_max(self, run: Denoising) -> int:
        return self._batch.rows_max(self._tokens(run.latents))

    def _tokens(self, latents: torch.Tensor) -> int:
        frames, height, width = latents.shape[2:]
        _, patch_height, patch_width = self._transformer.config.patch_size
        return int(frames * (height // patch_height) * (width // patch_width))

    @torch.no_grad()
    def step(self, batch: Sequence[Denoising]) -> None:
        latents, timesteps, prompts = [], [], []
        for run in batch:
            for prompt in (run.prompt, run.negative_prompt):
                if prompt is not None:
                    latents.append(run.latents)
                    timesteps.append(run.timesteps[run.step])
                    prompts.append(prompt)
        # Filled up with copies of the first row, whose predictions nobody reads.
        spare = self._batch.bucket(self._tokens(batch[0].latents), len(latents)) - len(latents)
        for column in (latents, timesteps, prompts):
            column.extend(column[:1] * spare)
        rows = torch.cat(latents).to(self._transformer.dtype)
        predictions = self._transformer(
            hidden_states=rows,
            timestep=self._timestep_argument(torch.stack(timesteps), rows),
            encoder_hidden_states=torch.cat(prompts),
            return_dict=False,
        )[0].split(1)
        row = 0
        for run in batch:
            noise = predictions[row]
            row += 1
            if run.negative_prompt is not None:
                # Classifier-free guidance, arXiv:2207.12598 equation 2.
                unconditional = predictions[row]
                row += 1
                noise = unconditional + run.spec.guidance_scale * (noise - unconditional)
            run.latents = run.scheduler.step(
                noise, run.timesteps[run.step], run.latents, return_dict=False
            )[0]
            run.step += 1

    def _timestep_argument(self, timesteps: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[rows], or [rows, tokens] for TI2V, which times every latent token by itself."""
        if not self._expand_timesteps:
            return timesteps
        return timesteps[:, None].expand(-1, self._tokens(rows))

    @torch.no_grad()
    def decode(self, run: Denoising) -> Iterator[Frames]:
        if not torch.isfinite(run.latents).all():
            raise InvalidOutput(
                "The model's result is not a picture: its latents are not finite numbers. "
                "Try another seed, fewer steps or a lower guidance_scale."
            )
        latents = self._denormalize(run.latents)
        chunks = self._decode_by_frame(latents) if self._chunked_decode else self._whole(latents)
        left = run.spec.frames
        for chunk in chunks:
            picture = (chunk.float() / 2 + 0.5).clamp(0, 1) * 255
            frames = picture[0].permute(1, 2, 3, 0).round().to(torch.uint8).cpu().numpy()
            yield np.ascontiguousarray(frames[:left])
            left -= min(left, len(frames))
            if not left:
                return

    def _denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        config = self._vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        latents = latents.to(self._device, self._vae.dtype)
        mean = torch.tensor(config.latents_mean).view(shape).to(latents)
        std_inverse = (1.0 / torch.tensor(config.latents_std)).view(shape).to(latents)
        return latents / std_inverse + mean

    def _whole(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        yield self._vae.decode(latents, return_dict=False)[0]

    def _decode_by_frame(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
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
