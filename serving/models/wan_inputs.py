"""What the pictures of a request become for a Wan transformer.

Wan has three ways to start from pictures, and a checkpoint is made for one of them:

* Image-to-video transformers read, beside the noisy latents, the encoded pictures and a mask of
  the frames that are given; those of Wan 2.1 attend to an image encoder's view of them as well.
* TI2V holds the first latent frame at the given picture and tells the transformer so, by timing
  its tokens at zero.
* Text-to-video checkpoints take a video as SDEdit does (arXiv:2108.01073): noised as far as
  ``strength`` says, and denoised from there.

The arithmetic is that of diffusers' ``WanImageToVideoPipeline`` and ``WanVideoToVideoPipeline``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from serving.models.family import Frames, Inputs
from serving.plan.catalog import InputName, Need
from serving.plan.clip import ClipSpec
from serving.plan.errors import InvalidInput

DIMENSIONS: dict[InputName, int] = {"first_frame": 3, "last_frame": 3, "video": 4}


def reads_pictures(pipeline: Any) -> bool:
    """Whether the transformer has channels for encoded pictures.

    It has in a ``WanImageToVideoPipeline``, the only one with a place for an image encoder, but for
    TI2V. The class is not imported to ask: that logs a complaint about torchvision at every start.
    """
    return hasattr(pipeline, "image_encoder") and not pipeline.config.expand_timesteps


def inputs_of(pipeline: Any) -> dict[InputName, Need]:
    """What a checkpoint can start from, and what it cannot do without."""
    if pipeline.config.expand_timesteps:
        return {"first_frame": "optional", "video": "optional"}
    if not reads_pictures(pipeline):
        return {"video": "optional"}
    config = pipeline.transformer.config
    if config.pos_embed_seq_len is not None:  # room for two views, and for no fewer
        return {"first_frame": "required", "last_frame": "required"}
    if config.image_dim is not None:
        return {"first_frame": "required"}
    return {"first_frame": "required", "last_frame": "optional"}


class WanInputs:
    """Checks and encodes the pictures of requests for one loaded pipeline.

    ``accepted`` is what the model may be given: :func:`inputs_of` the pipeline, or less.
    """

    def __init__(
        self, pipeline: Any, device: torch.device, accepted: Mapping[InputName, Need]
    ) -> None:
        self.accepted = accepted
        self._pipeline = pipeline
        self._device = device
        self._vae = pipeline.vae
        self._reads_pictures = reads_pictures(pipeline)
        self._dtype: torch.dtype = pipeline.transformer.dtype

    def check(self, spec: ClipSpec, inputs: Inputs) -> None:
        """Raise :class:`InvalidInput` if these pictures cannot become this clip."""
        pictures = {name: _get(inputs, name) for name in DIMENSIONS}
        given = {name: picture for name, picture in pictures.items() if picture is not None}
        for name in given.keys() - self.accepted.keys():
            raise InvalidInput(
                f"This model takes no {_words(name)}; send the request without it, or to a "
                f"model that does. It takes: {_listed(self.accepted)}.",
                param=name,
            )
        for name, need in self.accepted.items():
            if need == "required" and name not in given:
                raise InvalidInput(f"This model needs a {_words(name)}; send one.", param=name)
        if len(given) > 1 and "video" in given:
            raise InvalidInput(
                "A video brings its own first frame; send either of them.", param="video"
            )
        for name, picture in given.items():
            _check_array(name, picture)
        if inputs.last_frame is not None and self._frames(spec) == 1:
            raise InvalidInput(
                "A clip of one frame has no last one; ask for more seconds.", param="last_frame"
            )
        if inputs.video is not None:
            _check_video(spec, inputs.video, inputs.strength)

    def condition(self, spec: ClipSpec, inputs: Inputs) -> torch.Tensor | None:
        """What the transformer is shown at every step, in its dtype, or None.

        For image-to-video [1, mask and latent channels, latent frames, height, width]; for a
        first frame of TI2V its latents, [1, channels, 1, height, width] in float32.
        """
        if inputs.first_frame is None:
            return None
        first = self._pixels(spec, inputs.first_frame)
        if not self._reads_pictures:
            return self._encode(first)
        frames = self._frames(spec)
        video = first.new_zeros(1, 3, frames, spec.render_height, spec.render_width)
        video[:, :, :1] = first
        if inputs.last_frame is not None:
            video[:, :, -1:] = self._pixels(spec, inputs.last_frame)
        latents = self._encode(video)
        # A channel for each frame that a latent frame packs; the first one packs a single frame.
        mask = latents.new_zeros(1, self._vae.config.scale_factor_temporal, *latents.shape[2:])
        mask[:, :, 0] = 1
        if inputs.last_frame is not None:
            mask[:, -1, -1] = 1
        return torch.cat([mask, latents], dim=1).to(self._dtype)

    def image_embeds(self, inputs: Inputs) -> torch.Tensor | None:
        """The image encoder's view of the frames, [frames, tokens, channels], or None."""
        if self._pipeline.transformer.config.image_dim is None:
            return None
        pictures = [
            Image.fromarray(frame)
            for frame in (inputs.first_frame, inputs.last_frame)
            if frame is not None
        ]
        embeds: torch.Tensor = self._pipeline.encode_image(pictures, self._device)
        return embeds.to(self._dtype)

    def noised_video(
        self, spec: ClipSpec, video: Frames, strength: float, scheduler: Any, noise: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        """The video's latents under ``noise``, and the step to denoise them from.

        The scheduler is told to begin there.
        """
        step = (spec.steps - _steps_left(spec, strength)) * scheduler.order
        scheduler.set_begin_index(step)
        frames = video[: self._frames(spec)]
        # The clip's surplus frames are dropped, so it matters little what the model makes of them.
        frames = np.concatenate([frames, frames[-1:].repeat(self._frames(spec) - len(frames), 0)])
        pixels = self._pipeline.video_processor.preprocess_video(
            [Image.fromarray(frame) for frame in frames],
            height=spec.render_height,
            width=spec.render_width,
        )
        latents, timestep = self._encode(pixels), scheduler.timesteps[step : step + 1]
        if hasattr(scheduler, "add_noise"):
            return scheduler.add_noise(latents, noise, timestep), step
        return scheduler.scale_noise(latents, timestep, noise), step

    def _frames(self, spec: ClipSpec) -> int:
        return spec.render_frames(self._vae.config.scale_factor_temporal)

    def _pixels(self, spec: ClipSpec, frame: Frames) -> torch.Tensor:
        """A frame at the size the model works at, float32 [1, 3, 1, height, width], -1 to 1."""
        pixels: torch.Tensor = self._pipeline.video_processor.preprocess(
            Image.fromarray(frame), height=spec.render_height, width=spec.render_width
        )
        return pixels.unsqueeze(2)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised latents of a video, float32, on the device."""
        config = self._vae.config
        pixels = pixels.to(self._device, self._vae.dtype)
        latents = self._vae.encode(pixels).latent_dist.mode().float()
        shape = (1, config.z_dim, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(shape).to(latents)
        std_inverse = (1.0 / torch.tensor(config.latents_std)).view(shape).to(latents)
        normalised: torch.Tensor = (latents - mean) * std_inverse
        return normalised


def _get(inputs: Inputs, name: InputName) -> Frames | None:
    picture: Frames | None = getattr(inputs, name)
    return picture


def _words(name: InputName) -> str:
    return name.replace("_", " ")


def _listed(accepted: Mapping[InputName, Need]) -> str:
    return ", ".join(["text", *(f"a {_words(name)} ({need})" for name, need in accepted.items())])


def _check_array(name: InputName, picture: Frames) -> None:
    fits = picture.ndim == DIMENSIONS[name] and picture.shape[-1] == 3 and picture.size
    if picture.dtype != np.uint8 or not fits:
        raise InvalidInput(
            f"The {_words(name)} must be 8-bit RGB with at least one pixel; it is "
            f"{picture.dtype} of shape {list(picture.shape)}.",
            param=name,
        )


def _check_video(spec: ClipSpec, video: Frames, strength: float) -> None:
    if len(video) < spec.frames:
        raise InvalidInput(
            f"The video has {len(video)} frames and the clip {spec.frames}: {spec.seconds} s at "
            f"{spec.fps} frames a second. Send a longer video or ask for a shorter clip.",
            param="video",
        )
    if not 0 <= strength <= 1:  # nor is a NaN
        raise InvalidInput(f"'strength' must be from 0 to 1, not {strength}.", param="strength")
    if _steps_left(spec, strength) < 1:
        raise InvalidInput(
            f"A strength of {strength} leaves none of {spec.steps} steps: nothing would change. "
            f"Send at least {math.ceil(1000 / spec.steps) / 1000}, or more steps.",
            param="strength",
        )


def _steps_left(spec: ClipSpec, strength: float) -> int:
    return min(int(spec.steps * strength), spec.steps)
