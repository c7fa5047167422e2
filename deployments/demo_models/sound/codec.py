"""The codec: an Oobleck autoencoder of 8 kHz mono to one latent for every 48 ms.

Both halves learn on short crops, each by itself: the decoder to perform what
:mod:`deployments.demo_models.sound.latents` says, the encoder to tell the same from audio. The
decoder's latents have a little noise, so that it forgives what a denoiser gets wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

from deployments.demo_models.sound.codec_start import begin_as_synthesiser, start_alive
from deployments.demo_models.sound.latents import LATENT_CHANNELS, latents_of
from deployments.demo_models.sound.render import FRAME, FRAMES, compose, perform
from deployments.demo_models.sound.world import (
    DURATION_S_MAX,
    DURATION_S_MIN,
    SAMPLING_RATE_HZ,
    drawn_sound,
)

LATENT_NOISE = 0.1
"""Standard deviation of the noise on latents, while training and in the posterior."""
CROP_FRAMES = 16
TRANSFORMS = (256, 512, 1024)
LOG_FLOOR = 2e-3
QUIET = 0.02
"""RMS below which an error of the waveform counts no more than it would at this level."""
TONAL_SPECTRUM = 0.1
"""Weight of the spectrum where the waveform is told by the latents; 1 where it is noise."""


def new_codec(width: int = 16) -> AutoencoderOobleck:
    """A codec to be trained; ``width`` is the decoder's number of channels at the full rate."""
    codec = AutoencoderOobleck(
        encoder_hidden_size=2 * LATENT_CHANNELS,
        downsampling_ratios=[8, 8, 6],
        channel_multiples=[1, 3, 4],
        decoder_channels=width,
        decoder_input_channels=LATENT_CHANNELS,
        audio_channels=1,
        sampling_rate=SAMPLING_RATE_HZ,
    )
    start_alive(codec)
    begin_as_synthesiser(codec.decoder)
    _fix_deviation(codec)
    return codec


@torch.no_grad()
def _fix_deviation(codec: Any) -> None:
    """The posterior's deviation is ``LATENT_NOISE`` whatever is heard, and no loss changes it."""
    last = codec.encoder.conv2
    last.weight_v[LATENT_CHANNELS:] = 1e-4  # not zero: weight normalisation divides by its norm
    last.weight_g[LATENT_CHANNELS:] = last.weight_v[LATENT_CHANNELS:].norm(dim=(1, 2), keepdim=True)
    last.bias[LATENT_CHANNELS:] = float(np.log(np.expm1(LATENT_NOISE - 1e-4)))


def decoder_loss(codec: Any, latents: Tensor, audio: Tensor, noisy: Tensor) -> Tensor:
    """How far the performance of ``latents`` is from ``audio`` [batch, 1, samples].

    By sample for tones. For clips that are noise (``noisy`` [batch]) only the spectra count, at
    three resolutions: no latent says how each sample of a noise falls.
    """
    made = codec.decoder(latents)
    power = (audio**2).mean(dim=(1, 2)) + QUIET**2
    error = ((made - audio) ** 2).mean(dim=(1, 2)) / power
    spectrum = sum((_spectral_error(made, audio, size) for size in TRANSFORMS), torch.tensor(0.0))
    return torch.where(noisy, spectrum, error + TONAL_SPECTRUM * spectrum).mean()


def encoder_loss(codec: Any, latents: Tensor, audio: Tensor) -> Tensor:
    """The squared error of the latents that are heard in ``audio``."""
    return nn.functional.mse_loss(codec.encoder(audio)[:, :LATENT_CHANNELS], latents)


def _spectral_error(made: Tensor, audio: Tensor, size: int) -> Tensor:
    ours, wanted = _magnitudes(made, size), _magnitudes(audio, size)
    logs = ((ours + LOG_FLOOR).log() - (wanted + LOG_FLOOR).log()).abs().mean(dim=(1, 2))
    return logs + (ours - wanted).abs().mean(dim=(1, 2)) / (wanted.mean(dim=(1, 2)) + 1e-3)


def _magnitudes(audio: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=audio.device)
    spectrum = torch.stft(
        audio[:, 0], size, size // 4, window=window, return_complex=True, pad_mode="constant"
    )
    return (spectrum.real**2 + spectrum.imag**2 + 1e-9).sqrt() / (size / 4)


def crops(batch: int, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [batch, LATENT_CHANNELS, CROP_FRAMES], their audio, and which of them are noise."""
    latents, pieces, noisy = [], [], []
    for _ in range(batch):
        sound = drawn_sound(random)
        duration_s = float(random.uniform(DURATION_S_MIN, DURATION_S_MAX))
        seed = int(random.integers(2**31))
        score = compose(sound, duration_s, seed)
        audio = perform(score, seed)
        # Ends in the silence after a sound, sometimes: it must be silent.
        sounding = int(np.flatnonzero(score.any(axis=0))[-1]) + 1
        start = int(random.integers(max(0, min(FRAMES, sounding + 4) - CROP_FRAMES) + 1))
        latents.append(latents_of(score, audio)[:, start : start + CROP_FRAMES])
        pieces.append(audio[start * FRAME : (start + CROP_FRAMES) * FRAME])
        noisy.append(sound.kind == "noise")
    return (
        torch.from_numpy(np.stack(latents)),
        torch.from_numpy(np.stack(pieces))[:, None],
        torch.tensor(noisy),
    )


@torch.no_grad()
def encode(codec: Any, audio: Tensor) -> Tensor:
    """Means of the latents, [batch, LATENT_CHANNELS, frames], of ``audio`` [batch, 1, samples]."""
    mean: Tensor = codec.encode(audio).latent_dist.mode()
    return mean
