"""What one job is asked to make, with every default filled in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from serving.plan.catalog import Model, parse_size
from serving.plan.errors import InvalidRequest

SEED_MAX = 2**53 - 1
"""Seeds survive JSON and Lua, which both hold integers exactly only up to here."""
UPSCALE = 2
"""How many times as wide and high an upscaler makes a frame."""


class ClipSpec(BaseModel):
    """A complete, validated description of one clip: the same spec makes the same bytes.

    ``width`` and ``height`` are the output's; the model works at ``render_width`` x
    ``render_height``, its frames are made ``upscale`` times as wide and high, and the encoder
    scales. ``frames`` is what the clip shows; the model makes ``render_frames``, which its VAE can
    pack, and the surplus is dropped.
    """

    # What does not fit must not bring a prompt into a log.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str
    prompt: str
    negative_prompt: str = ""
    seconds: int
    fps: int
    width: int
    height: int
    render_width: int
    render_height: int
    steps: int
    guidance_scale: float
    seed: int
    upscale: int = 1

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A clip that is not upscaled reads as it did before any was: its checkpoints, which say
        whose they are, stay good."""
        fields: dict[str, Any] = dump(self)
        if self.upscale == 1:
            del fields["upscale"]
        return fields

    @property
    def frames(self) -> int:
        return self.seconds * self.fps

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def shape(self) -> str:
        """What the model works on: clips of one shape may share a forward."""
        return f"{self.render_width}x{self.render_height}x{self.frames}"

    @property
    def rows(self) -> int:
        """Rows of a forward that it takes: one, and one more for guidance."""
        return 2 if self.guidance_scale > 1.0 else 1

    def render_frames(self, frame_multiple: int) -> int:
        """Frames the model makes: one more than a multiple of the VAE's temporal packing."""
        return math.ceil((self.frames - 1) / frame_multiple) * frame_multiple + 1

    def tokens(self, model: Model) -> int:
        """Latent tokens of one row of the transformer."""
        limits = model.video
        latent_frames = (self.render_frames(limits.frame_multiple) - 1) // limits.frame_multiple + 1
        side = limits.size_multiple
        return latent_frames * (self.render_width // side) * (self.render_height // side)

    @classmethod
    def resolve(
        cls,
        model: Model,
        *,
        prompt: str,
        seed: int,
        negative_prompt: str | None = None,
        seconds: int | None = None,
        size: str | None = None,
        fps: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        upscale: int | None = None,
    ) -> Self:
        """Fill in the model's defaults and hold every value to its limits. ``size`` is that of the
        catalog, before upscaling.

        Raises :class:`InvalidRequest` with the offending ``param`` and what is allowed.
        """
        for mistake in _mistakes(
            model,
            {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                "seconds": seconds,
                "size": size,
                "fps": fps,
                "steps": steps,
                "guidance_scale": guidance_scale,
                "seed": seed,
                "upscale": upscale,
            },
        ):
            raise mistake
        limits = model.video
        size = size or limits.default_size
        upscale = upscale or 1
        width, height = (upscale * side for side in parse_size(size))
        render_width, render_height = limits.render_size(size)
        return cls(
            model=model.id,
            prompt=prompt,
            negative_prompt=negative_prompt or "",
            seconds=seconds or limits.default_seconds,
            fps=fps if fps is not None else limits.fps.default,
            width=width,
            height=height,
            render_width=render_width,
            render_height=render_height,
            steps=steps if steps is not None else limits.steps.default,
            guidance_scale=(
                guidance_scale if guidance_scale is not None else limits.guidance_scale.default
            ),
            seed=seed,
            upscale=upscale,
        )


def _mistakes(model: Model, given: Mapping[str, object]) -> Iterator[InvalidRequest]:
    limits = model.video
    for name in ("prompt", "negative_prompt"):
        text = given[name]
        if text is not None and len(str(text)) > limits.prompt_chars_max:
            yield InvalidRequest(
                f"'{name}' has {len(str(text))} characters; "
                f"the model '{model.id}' takes at most {limits.prompt_chars_max}.",
                code="string_too_long",
                param=name,
            )
    if not str(given["prompt"]).strip():
        yield InvalidRequest("'prompt' is empty; say what the clip shows.", param="prompt")
    if given["size"] is not None and given["size"] not in limits.sizes:
        yield InvalidRequest(
            f"'size' {str(given['size'])[:32]!r} is not supported by '{model.id}'. "
            f"Supported: {', '.join(limits.sizes)}.",
            code="unsupported_size",
            param="size",
        )
    if given["seconds"] is not None and given["seconds"] not in limits.seconds:
        yield InvalidRequest(
            f"'seconds' {given['seconds']} is not supported by '{model.id}'. "
            f"Supported: {', '.join(map(str, limits.seconds))}.",
            code="unsupported_seconds",
            param="seconds",
        )
    if given["upscale"] not in (None, 1):
        yield from _upscaling_mistakes(model, given["upscale"])
    for name, low, high in (
        ("fps", limits.fps.min, limits.fps.max),
        ("steps", limits.steps.min, limits.steps.max),
        ("guidance_scale", limits.guidance_scale.min, limits.guidance_scale.max),
        ("seed", 0, SEED_MAX),
    ):
        value = given[name]
        # "not within" rather than "below or above": a NaN is neither.
        if isinstance(value, int | float) and not low <= value <= high:
            yield InvalidRequest(
                f"'{name}' must be from {low} to {high}, not {value}.",
                code="out_of_range",
                param=name,
            )


def _upscaling_mistakes(model: Model, factor: object) -> Iterator[InvalidRequest]:
    if not model.upscales:
        why = (
            f"the model '{model.id}' has no upscaler"
            if model.upscaler is None
            else "no model server is set up here that could do it (REELSERVE_TRITON_URL)"
        )
        yield InvalidRequest(
            f"'upscale' is not offered: {why}. Leave it out, or choose a model whose 'upscale' "
            "in GET /v1/models includes 2.",
            code="unsupported_parameter",
            param="upscale",
        )
    if factor != UPSCALE:
        yield InvalidRequest(
            f"'upscale' must be 1 (not at all) or {UPSCALE}, not {factor}.",
            code="out_of_range",
            param="upscale",
        )
