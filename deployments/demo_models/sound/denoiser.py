"""The denoiser: a Stable Audio DiT, trained under what ``StableAudioPipeline`` samples with.

The pipeline's conventions, followed to the letter:

* The scheduler is EDM's multistep DPM-Solver with ``sigma_data`` 1 and v prediction: for data x
  and noise n the network sees (x + sigma n) / sqrt(1 + sigma^2) at time log(sigma) / 4 and
  predicts (n - sigma x) / sqrt(1 + sigma^2). (Stable Audio Open ships the stochastic cosine
  solver, which needs the package torchsde.)
* Padded tokens are zeros after the projection, and are attended to.
* Without a negative prompt, guidance starts from zeros in place of text *and* seconds, while
  the global states keep the seconds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioProjectionModel,
)
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn

from deployments.demo_models.sound.latents import LATENT_CHANNELS
from deployments.demo_models.sound.render import FRAMES
from deployments.demo_models.sound.text import TEXT_CHANNELS

SIGMA_MIN = 0.03
SIGMA_MAX = 60.0
DROPPED_CAPTIONS = 0.1
"""How often a caption is replaced by zeros in training, for guidance."""
SECONDS_MAX = 4.0


def new_scheduler() -> EDMDPMSolverMultistepScheduler:
    return EDMDPMSolverMultistepScheduler(
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        sigma_data=1.0,
        sigma_schedule="karras",
        rho=5.0,
        prediction_type="v_prediction",
    )


def new_projection() -> StableAudioProjectionModel:
    return StableAudioProjectionModel(
        text_encoder_dim=TEXT_CHANNELS,
        conditioning_dim=TEXT_CHANNELS,
        min_value=0,
        max_value=SECONDS_MAX,
    )


def new_transformer(layers: int = 4, heads: int = 4) -> StableAudioDiTModel:
    return StableAudioDiTModel(
        sample_size=FRAMES,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=heads,
        num_key_value_attention_heads=heads,
        cross_attention_dim=TEXT_CHANNELS,
        cross_attention_input_dim=TEXT_CHANNELS,
        global_states_input_dim=2 * TEXT_CHANNELS,
        time_proj_dim=128,
    )


class Denoiser(nn.Module):
    """Text encoder, projection and transformer: all that is trained on latents."""

    def __init__(self, text_encoder: Any, projection_model: Any, transformer: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.projection_model = projection_model
        self.transformer = transformer

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        sigma: Tensor,
        ids: Tensor,
        mask: Tensor,
        seconds: Tensor,
        dropped: Tensor,
    ) -> Tensor:
        """The mean squared error of the prediction.

        ``latents`` and ``noise`` [clips, LATENT_CHANNELS, FRAMES]; ``sigma``, ``seconds`` (where
        the sound ends) and ``dropped`` (true: without its caption) [clips]; ``ids`` and ``mask``
        [clips, TOKENS].
        """
        states = self.text_encoder(ids, attention_mask=mask)[0]
        conditions = self.projection_model(
            text_hidden_states=states, start_seconds=torch.zeros_like(seconds), end_seconds=seconds
        )
        start = conditions.seconds_start_hidden_states
        end = conditions.seconds_end_hidden_states
        text = conditions.text_hidden_states * mask.unsqueeze(-1)
        everything = torch.cat([text, start, end], dim=1) * ~dropped[:, None, None]
        size = sigma[:, None, None]
        norm = (1 + size**2).sqrt()
        predicted = self.transformer(
            (latents + size * noise) / norm,
            sigma.log() / 4,
            encoder_hidden_states=everything,
            global_hidden_states=torch.cat([start, end], dim=2),
            rotary_embedding=_rotary(self.transformer, latents.shape[2], latents.device),
            return_dict=False,
        )[0]
        return nn.functional.mse_loss(predicted.float(), (noise - size * latents) / norm)


def _rotary(transformer: Any, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    cosine, sine = get_1d_rotary_pos_embed(
        transformer.config.attention_head_dim // 2,
        frames + 1,  # one for the global state in front
        use_real=True,
        repeat_interleave_real=False,
    )
    return cosine.to(device), sine.to(device)


def sigmas(uniform: Tensor) -> Tensor:
    """Noise levels whose angle atan(sigma) is spread evenly, from ``uniform`` in [0, 1)."""
    low, high = math.atan(SIGMA_MIN), math.atan(SIGMA_MAX)
    return torch.tan(low + (high - low) * uniform)
