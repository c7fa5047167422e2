"""The codec: an Oobleck autoencoder of 8 kHz mono to one latent for every 48 ms.

Trained on short crops with spectra at three resolutions and the waveform itself. While training,
latents are normalised over the batch and get a little noise, so that the decoder forgives what a
denoiser gets wrong; :func:`fold` then moves mean and scale into the encoder's last convolution,
because ``StableAudioPipeline`` knows no factor to scale latents by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

from deployments.demo_models.sound.render import FRAME, FRAMES, render
from deployments.demo_models.sound.world import (
    DURATION_S_MAX,
    DURATION_S_MIN,
    SAMPLING_RATE_HZ,
    Sound,
)

LATENT_CHANNELS = 8
LATENT_NOISE = 0.1
"""Standard deviation of the noise on normalised latents, while training and in the posterior."""
CROP_FRAMES = 12
RESIDUAL_START = 0.1
TRANSFORMS = (256, 512, 1024)
WAVEFORM_WEIGHT = 2.0
QUIET = 0.02
"""RMS below which an error of the waveform counts no more than it would at this level."""
LOG_FLOOR = 2e-3


def new_codec(width: int = 16) -> AutoencoderOobleck:
    """A codec to be trained; ``width`` is the decoder's number of channels at the full rate."""
    codec = AutoencoderOobleck(
        encoder_hidden_size=2 * LATENT_CHANNELS,
        downsampling_ratios=[8, 8, 6],
        channel_multiples=[2, 5, 8],
        decoder_channels=width,
        decoder_input_channels=LATENT_CHANNELS,
        audio_channels=1,
        sampling_rate=SAMPLING_RATE_HZ,
    )
    _start_alive(codec)
    return codec


@torch.no_grad()
def _start_alive(codec: Any) -> None:
    """Initial weights under which a signal keeps its size from layer to layer.

    By default each convolution shrinks it, a transposed one most: the decoder then says next to
    nothing of its latents and spends its first thousand steps on learning silence. Residual
    units begin as little, so that the network is shallow at first.
    """
    for name, module in codec.named_modules():
        if isinstance(module, nn.ConvTranspose1d):
            stride, grow = module.stride[0], module.out_channels / module.in_channels
            module.weight_g.mul_((3 * stride * grow) ** 0.5)
        elif isinstance(module, nn.Conv1d):
            small = RESIDUAL_START if "res_unit" in name and name.endswith("conv2") else 1.0
            module.weight_g.mul_(3**0.5 * small)
    codec.encoder.conv1.weight_g.mul_(4.0)  # audio has a deviation of a quarter or less
    codec.decoder.conv2.weight_g.mul_(0.05)


class CodecTrainer(nn.Module):
    """The codec and the running mean and scale of its latents."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("scale", torch.ones(LATENT_CHANNELS))

    def forward(self, audio: Tensor, noise: Tensor, momentum: float) -> Tensor:
        """Loss of ``audio`` [batch, 1, samples]; ``noise`` is normal, in the latents' shape."""
        latents = self.codec.encoder(audio)[:, :LATENT_CHANNELS]
        mean, scale = latents.mean(dim=(0, 2)), latents.std(dim=(0, 2)) + 1e-4
        with torch.no_grad():
            self.mean.lerp_(mean, momentum)
            self.scale.lerp_(scale, momentum)
        latents = (latents - mean[:, None]) / scale[:, None]
        return reconstruction_loss(self.codec.decoder(latents + LATENT_NOISE * noise), audio)


def reconstruction_loss(made: Tensor, audio: Tensor) -> Tensor:
    """How far ``made`` is from ``audio``, both [batch, 1, samples], to the ear and by sample."""
    power = (audio**2).mean(dim=(1, 2)) + QUIET**2
    loss = WAVEFORM_WEIGHT * (((made - audio) ** 2).mean(dim=(1, 2)) / power).mean()
    for size in TRANSFORMS:
        ours, wanted = _magnitudes(made, size), _magnitudes(audio, size)
        logs = ((ours + LOG_FLOOR).log() - (wanted + LOG_FLOOR).log()).abs().mean()
        loss = loss + logs + (ours - wanted).abs().mean() / (wanted.mean() + 1e-4)
    return loss


def _magnitudes(audio: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=audio.device)
    spectrum = torch.stft(
        audio[:, 0], size, size // 4, window=window, return_complex=True, pad_mode="constant"
    )
    return (spectrum.real**2 + spectrum.imag**2 + 1e-9).sqrt() / (size / 4)


def crops(sounds: tuple[Sound, ...], batch: int, random: np.random.Generator) -> Tensor:
    """[batch, 1, CROP_FRAMES * FRAME] of random sounds, cut where latents begin."""
    pieces = []
    for _ in range(batch):
        sound = sounds[int(random.integers(len(sounds)))]
        duration_s = float(random.uniform(DURATION_S_MIN, DURATION_S_MAX))
        clip = render(sound, duration_s, int(random.integers(2**31)))
        # Ends in the silence after a clip, sometimes: it must be silent.
        last = min(FRAMES, int(duration_s * SAMPLING_RATE_HZ / FRAME) + 4) - CROP_FRAMES
        start = int(random.integers(last + 1)) * FRAME
        pieces.append(clip[start : start + CROP_FRAMES * FRAME])
    return torch.from_numpy(np.stack(pieces))[:, None]


@torch.no_grad()
def fold(trainer: CodecTrainer) -> AutoencoderOobleck:
    """The codec whose posterior has mean 0, scale 1 and a deviation of ``LATENT_NOISE``."""
    last = trainer.codec.encoder.conv2
    weight, bias = last.weight.clone(), last.bias.clone()
    weight[:LATENT_CHANNELS] /= trainer.scale[:, None, None]
    bias[:LATENT_CHANNELS] = (bias[:LATENT_CHANNELS] - trainer.mean) / trainer.scale
    # A tiny weight and not zero: weight normalisation divides by its norm.
    weight[LATENT_CHANNELS:] = 1e-4
    bias[LATENT_CHANNELS:] = float(np.log(np.expm1(LATENT_NOISE - 1e-4)))
    last.weight_g.copy_(weight.norm(dim=(1, 2), keepdim=True))
    last.weight_v.copy_(weight)
    last.bias.copy_(bias)
    return trainer.codec


@torch.no_grad()
def encode(codec: Any, audio: Tensor) -> Tensor:
    """Means of the latents, [batch, LATENT_CHANNELS, frames], of ``audio`` [batch, 1, samples]."""
    mean: Tensor = codec.encode(audio).latent_dist.mode()
    return mean
