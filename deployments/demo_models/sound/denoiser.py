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
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn

from deployments.demo_models.sound.latents import LATENT_CHANNELS
from deployments.demo_models.sound.render import FRAMES
from deployments.demo_models.sound.text import TEXT_CHANNELS, AttributeHead, new_encoder
from deployments.demo_models.sound.world import Sound

SIGMA_MIN = 0.03
SIGMA_MAX = 60.0
DROPPED_CAPTIONS = 0.1
"""How often a caption is replaced by zeros in training, for guidance."""
SECONDS_MAX = 4.0
HEAD_CHANNELS = 32
KNOWS_WHERE = 1
"""The block whose states tell which frame each is."""


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


def new_transformer(layers: int, heads: int) -> StableAudioDiTModel:
    return StableAudioDiTModel(
        sample_size=FRAMES,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=HEAD_CHANNELS,
        num_attention_heads=heads,
        num_key_value_attention_heads=heads,
        cross_attention_dim=TEXT_CHANNELS,
        cross_attention_input_dim=TEXT_CHANNELS,
        global_states_input_dim=2 * TEXT_CHANNELS,
        time_proj_dim=128,
    )


class Denoiser(nn.Module):
    """What is trained together: text encoder, projection and transformer, and two heads that are
    dropped when the training ends. Of a frame's place the transformer knows only how far it is
    from others, and of a caption only its words: one head has to tell, from an early block's
    states, which frame each is, the other what a caption says."""

    def __init__(self, layers: int = 4, heads: int = 3) -> None:
        super().__init__()
        self.text_encoder = new_encoder()
        self.projection_model = new_projection()
        self.transformer = new_transformer(layers, heads)
        self.where = nn.Linear(HEAD_CHANNELS * heads, FRAMES)
        self.what = AttributeHead()
        self._states: Tensor | None = None
        early = self.transformer.transformer_blocks[min(KNOWS_WHERE, layers - 1)]
        early.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, states: Tensor) -> None:
        self._states = states

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[captions, TOKENS, TEXT_CHANNELS] of ``ids`` and ``mask`` [captions, TOKENS]."""
        states: Tensor = self.text_encoder(ids, attention_mask=mask)[0]
        return states

    def forward(
        self,
        seen: Tensor,
        sigma: Tensor,
        text: Tensor,
        mask: Tensor,
        seconds: Tensor,
        dropped: Tensor,
    ) -> Tensor:
        """The prediction for what :func:`noised` gives, as ``seen`` [clips, LATENT_CHANNELS,
        FRAMES]. ``sigma``, ``seconds`` (where the sound ends) and ``dropped`` (true: without its
        caption) are [clips]."""
        conditions = self.projection_model(
            text_hidden_states=text, start_seconds=torch.zeros_like(seconds), end_seconds=seconds
        )
        start = conditions.seconds_start_hidden_states
        end = conditions.seconds_end_hidden_states
        states = conditions.text_hidden_states * mask.unsqueeze(-1)
        everything = torch.cat([states, start, end], dim=1) * ~dropped[:, None, None]
        predicted: Tensor = self.transformer(
            seen,
            sigma.log() / 4,
            encoder_hidden_states=everything,
            global_hidden_states=torch.cat([start, end], dim=2),
            rotary_embedding=_rotary(self.transformer, seen.shape[2], seen.device),
            return_dict=False,
        )[0]
        return predicted

    def where_loss(self) -> Tensor:
        """Cross entropy of which frame each of the last forward is."""
        if self._states is None:
            raise RuntimeError("there was no forward whose frames could be asked")
        told = self.where(self._states[:, 1:])  # the first is the global state
        frames = torch.arange(told.shape[1], device=told.device).expand(len(told), -1)
        return nn.functional.cross_entropy(told.transpose(1, 2), frames)

    def what_loss(self, text: Tensor, mask: Tensor, sounds: Sequence[Sound]) -> Tensor:
        """Cross entropy of what each caption says."""
        loss: Tensor = self.what(text, mask, sounds)
        return loss


def noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees and what it should predict, [clips, LATENT_CHANNELS, FRAMES] as
    ``latents`` and ``noise`` are; ``sigma`` [clips]."""
    size = sigma[:, None, None]
    norm = (1 + size**2).sqrt()
    return (latents + size * noise) / norm, (noise - size * latents) / norm


def new_pipeline(denoiser: Denoiser, codec: Any, tokenizer: Any) -> StableAudioPipeline:
    """For ``save_pretrained``."""
    pipeline: StableAudioPipeline = StableAudioPipeline(
        vae=codec.eval(),
        text_encoder=denoiser.text_encoder.eval(),
        projection_model=denoiser.projection_model.eval(),
        tokenizer=tokenizer,
        transformer=denoiser.transformer.eval(),
        scheduler=new_scheduler(),
    )
    return pipeline


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
