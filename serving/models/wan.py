"""The Wan family (arXiv:2503.20314): Wan 2.1, Wan 2.2 with two transformers, and TI2V.

The arithmetic is that of diffusers' Wan pipelines, and tests hold the two together; the loop is
ours, because a pipeline's loop can neither batch, nor stop, nor hand over its state.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.utils.torch_utils import randn_tensor

from serving.models import solver, text_embedding, text_states
from serving.models.buckets import Buckets
from serving.models.family import NO_INPUTS, Denoising, Frames, Inputs
from serving.models.previews import LatentToRgb, Picture
from serving.models.prompts import PromptCache
from serving.models.text_states import TextStates
from serving.models.wan_decoder import WanDecoder
from serving.models.wan_inputs import WanInputs, inputs_of, reads_pictures
from serving.plan.catalog import BatchPolicy, InputName, Need
from serving.plan.clip import ClipSpec
from serving.plan.errors import ConfigError, InvalidOutput

TEXT_TOKENS_BESIDE_IMAGES = 512
"""Attention over an image encoder's tokens takes the last 512 of them for text, always."""


class WanFamily:
    """A loaded ``WanPipeline`` or ``WanImageToVideoPipeline`` used for its components.

    ``prompt_tokens`` is the length every prompt is padded to; ``prompt_cache_bytes`` of embeddings
    are kept. ``text_states_bytes`` bounds the memory for prompts' keys and values; 0 leaves them to
    the library, as offload needs it. ``chunked_decode`` can be interrupted and must be off with
    offload or tiling (:class:`WanDecoder`); ``decode_beside`` allows it on a thread of its own.
    ``guidance_scale_2`` is the guidance of the second transformer, where it is not the request's;
    ``inputs`` are those the model may be given, where they are not all the checkpoint can take.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        device: torch.device,
        prompt_tokens: int,
        prompt_cache_bytes: int = 0,
        text_states_bytes: int = text_states.BYTES_MAX,
        chunked_decode: bool = True,
        decode_beside: bool = False,
        fingerprint: str = "",
        batch: BatchPolicy | None = None,
        guidance_scale_2: float | None = None,
        inputs: Mapping[InputName, Need] | None = None,
    ) -> None:
        _check_parts(pipeline, prompt_tokens, guidance_scale_2)
        self.decode_beside = decode_beside
        self._fingerprint = fingerprint
        self._buckets = Buckets(batch or BatchPolicy())
        self._pipeline = pipeline
        self._transformer: WanTransformer3DModel = pipeline.transformer
        self._low_noise_transformer: WanTransformer3DModel = (
            pipeline.transformer_2 or pipeline.transformer
        )
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._decoder = WanDecoder(pipeline.vae, device, chunked=chunked_decode)
        self._device = device
        self._prompt_tokens = prompt_tokens
        self._prompts = PromptCache(prompt_cache_bytes)
        self._previews: LatentToRgb | None = None
        self._guidance_scale_2 = guidance_scale_2
        self._expand_timesteps = bool(pipeline.config.expand_timesteps)
        self._reads_pictures = reads_pictures(pipeline)
        self._inputs = WanInputs(
            pipeline, device, inputs_of(pipeline) if inputs is None else inputs
        )
        self._scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        self._solves_together = solver.fits(self._scheduler)
        solver_step = type(self._scheduler).step
        self._solver_draws = "generator" in inspect.signature(solver_step).parameters
        transformers = {self._transformer, self._low_noise_transformer}
        self._text_states = {
            transformer: TextStates(transformer, text_states_bytes // len(transformers))
            for transformer in transformers
            if text_states_bytes and TextStates.fit(transformer)
        }

    @property
    def fingerprint(self) -> str:
        """Another one once a forward had to shrink: its rows decide bits as well."""
        return self._fingerprint + self._buckets.name

    @torch.no_grad()
    def begin(self, spec: ClipSpec, inputs: Inputs = NO_INPUTS) -> Denoising:
        self._inputs.check(spec, inputs)
        scheduler = deepcopy(self._scheduler)
        scheduler.set_timesteps(spec.steps, device=self._device)
        # Without this the scheduler looks its index up by timestep, which costs a device
        # synchronisation and is ambiguous when there are more steps than training timesteps.
        scheduler.set_begin_index(0)
        # On the CPU, so that a seed means the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        latents, step = self._noise(spec, generator), 0
        if inputs.video is not None:
            latents, step = self._inputs.noised_video(
                spec, inputs.video, inputs.strength, scheduler, latents
            )
        run = Denoising(
            spec=spec,
            latents=latents,
            scheduler=scheduler,
            timesteps=scheduler.timesteps,
            prompt=self._embed(spec.prompt),
            negative_prompt=(
                self._embed(spec.negative_prompt) if spec.guidance_scale > 1.0 else None
            ),
            step=step,
            condition=self._inputs.condition(spec, inputs),
            image_embeds=self._inputs.image_embeds(inputs),
            boundary_step=self._boundary_step(scheduler),
        )
        self._hold_first_frame(run)
        if self._solver_draws:
            # Part of the solver from now on, and not of what it was made as: so a checkpoint
            # carries it with the rest of the solver's state.
            scheduler.noise_generator = generator
        return run

    def _embed(self, text: str) -> torch.Tensor:
        """[1, tokens, text channels], encoded alone: no bit of it depends on another text."""
        return self._prompts.get(
            (text, self._prompt_tokens),
            self._device,
            lambda: text_embedding.embed(
                self._pipeline, text, self._prompt_tokens, self._device, self._dtype
            ),
        )

    @property
    def counters(self) -> Mapping[str, int]:
        return {
            "prompt_cache_hits": self._prompts.hits,
            "prompt_cache_misses": self._prompts.misses,
        }

    def _noise(self, spec: ClipSpec, generator: torch.Generator) -> torch.Tensor:
        config = self._pipeline.vae.config
        frames = spec.render_frames(config.scale_factor_temporal)
        shape = (
            1,
            config.z_dim,
            (frames - 1) // config.scale_factor_temporal + 1,
            spec.render_height // config.scale_factor_spatial,
            spec.render_width // config.scale_factor_spatial,
        )
        noise: torch.Tensor = randn_tensor(
            shape, generator=generator, device=self._device, dtype=torch.float32
        )
        return noise

    def _boundary_step(self, scheduler: Any) -> int | None:
        """The first step that belongs to the second transformer."""
        ratio = self._pipeline.config.boundary_ratio
        if ratio is None:
            return None
        return int((scheduler.timesteps >= ratio * scheduler.config.num_train_timesteps).sum())

    def _hold_first_frame(self, run: Denoising) -> None:
        """TI2V's first latent frame is what was given; solvers work on each number by itself."""
        if run.condition is not None and not self._reads_pictures:
            run.latents[:, :, :1] = run.condition

    def batch_key(self, run: Denoising) -> Hashable:
        return tuple(run.latents.shape), _past_boundary(run)

    def rows_max(self, run: Denoising) -> int:
        return self._buckets.rows_max(self._tokens(run.latents))

    def release(self) -> None:
        self._prompts.clear()
        for states in self._text_states.values():
            states.clear()

    def shrink(self, batch: Sequence[Denoising]) -> bool:
        carried = sum(run.rows for run in batch)
        return self._buckets.shrink(self._tokens(batch[0].latents), carried)

    def _tokens(self, latents: torch.Tensor) -> int:
        frames, height, width = latents.shape[2:]
        _, patch_height, patch_width = self._transformer.config.patch_size
        return int(frames * (height // patch_height) * (width // patch_width))

    @torch.no_grad()
    def step(self, batch: Sequence[Denoising]) -> None:
        rows = [
            (run, prompt)
            for run in batch
            for prompt in (run.prompt, run.negative_prompt)
            if prompt is not None
        ]
        predictions = iter(self._predict([run for run, _ in rows], [prompt for _, prompt in rows]))
        noises = []
        for run in batch:
            noise = next(predictions)
            if run.negative_prompt is not None:
                # Classifier-free guidance, arXiv:2207.12598 equation 2.
                unconditional = next(predictions)
                noise = unconditional + self._guidance_scale(run) * (noise - unconditional)
            run.seen = (run.latents, noise)
            noises.append(noise)
        for run, latents in zip(batch, self._solve(batch, noises), strict=True):
            run.latents = latents
            self._hold_first_frame(run)
            run.step += 1

    def _solve(
        self, batch: Sequence[Denoising], noises: Sequence[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """The latents after this step."""
        if self._solves_together:
            latents = [run.latents for run in batch]
            yield from solver.step([run.scheduler for run in batch], noises, latents)
            return
        for run, noise in zip(batch, noises, strict=True):
            with _undone_if_it_fails(run.scheduler):
                draws = {"generator": run.scheduler.noise_generator} if self._solver_draws else {}
                latents = run.scheduler.step(
                    noise, run.timesteps[run.step], run.latents, return_dict=False, **draws
                )[0]
            yield latents

    def _predict(
        self, runs: Sequence[Denoising], prompts: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """One forward, of a row for each prompt and the run it belongs to."""
        past = _past_boundary(runs[0])
        transformer = self._low_noise_transformer if past else self._transformer
        bucket = self._buckets.rows(self._tokens(runs[0].latents), len(runs))
        with self._text(transformer, runs[0].latents.shape, prompts, bucket) as places:
            # Filled up with copies of the first row, whose predictions nobody reads.
            order = [0] * bucket
            for index, place in enumerate(places or range(len(runs))):
                order[place] = index
            rows = [runs[index] for index in order]
            text = torch.cat([prompts[index] for index in order]) if places is None else None
            predictions = transformer(
                hidden_states=self._latents(rows),
                timestep=self._timestep_argument(rows),
                encoder_hidden_states=prompts[0].new_empty(bucket, 0, prompts[0].shape[2])
                if text is None
                else text,
                encoder_hidden_states_image=_joined(row.image_embeds for row in rows),
                return_dict=False,
            )[0].split(1)
        return [predictions[place] for place in places or range(len(runs))]

    def _text(
        self,
        transformer: WanTransformer3DModel,
        shape: Hashable,
        prompts: Sequence[torch.Tensor],
        bucket: int,
    ) -> AbstractContextManager[list[int] | None]:
        """The prompts' rows where the transformer reads them by itself; None if not."""
        states = self._text_states.get(transformer)
        return nullcontext() if states is None else states.read(shape, prompts, bucket)

    def _latents(self, rows: Sequence[Denoising]) -> torch.Tensor:
        """[rows, channels, …] as the transformer takes them, what pictures became beside them."""
        latents = torch.cat([run.latents for run in rows]).to(self._dtype)
        if not self._reads_pictures:
            return latents
        conditions = torch.cat([run.condition for run in rows if run.condition is not None])
        return torch.cat([latents, conditions], dim=1)

    def _timestep_argument(self, runs: Sequence[Denoising]) -> torch.Tensor:
        """[rows], or [rows, tokens] for TI2V, which times every latent token by itself."""
        times = torch.stack([run.timesteps[run.step] for run in runs])
        if not self._expand_timesteps:
            return times
        tokens, frames = self._tokens(runs[0].latents), runs[0].latents.shape[2]
        by_token = times[:, None].expand(-1, tokens)
        if all(run.condition is None for run in runs):
            return by_token
        by_token = by_token.contiguous()
        for row, run in enumerate(runs):
            if run.condition is not None:  # there is no noise in a frame that is given
                by_token[row, : tokens // frames] = 0
        return by_token

    def _guidance_scale(self, run: Denoising) -> float:
        if self._guidance_scale_2 is not None and _past_boundary(run):
            return self._guidance_scale_2
        return run.spec.guidance_scale

    def fit_previews(self) -> LatentToRgb:
        """Learn from the VAE how to show its latents. Best while nothing runs: with offload, the
        VAE takes the place of what is on the device."""
        self._previews = self._decoder.fit_previews()
        self._pipeline.maybe_free_model_hooks()
        return self._previews

    @torch.no_grad()
    def preview(self, run: Denoising) -> Picture:
        show = self._previews or self.fit_previews()
        middle = run.latents.shape[2] // 2
        if run.seen is None:
            return show(run.latents[0, :, middle])
        # Flow matching predicts a straight line, so whatever the solver is, here it ends.
        latents, velocity = (each[0, :, middle].float() for each in run.seen)
        return show(latents - run.scheduler.sigmas[run.step - 1] * velocity)

    def decode(self, run: Denoising) -> Iterator[Frames]:
        if not torch.isfinite(run.latents).all():
            raise InvalidOutput(
                "The model's result is not a picture: its latents are not finite numbers. "
                "Try another seed, fewer steps or a lower guidance_scale."
            )
        return self._decoder.decode(run.latents, run.spec.frames)


@contextmanager
def _undone_if_it_fails(scheduler: Any) -> Iterator[None]:
    """A solver changes its history before it computes, and the step may be tried again."""
    before: dict[str, Any] = {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(scheduler).items()
    }
    drawn = before["noise_generator"].get_state() if "noise_generator" in before else None
    try:
        yield
    except Exception:
        vars(scheduler).clear()
        vars(scheduler).update(before)
        if drawn is not None:
            scheduler.noise_generator.set_state(drawn)
        raise


def _joined(embeds: Iterable[torch.Tensor | None]) -> torch.Tensor | None:
    given = [each for each in embeds if each is not None]
    return torch.cat(given) if given else None


def _past_boundary(run: Denoising) -> bool:
    """Whether its next step is the second transformer's."""
    return run.boundary_step is not None and run.step >= run.boundary_step


def _check_parts(pipeline: Any, prompt_tokens: int, guidance_scale_2: float | None) -> None:
    """Raise :class:`ConfigError` for a checkpoint whose parts do not belong together."""
    if pipeline.transformer is None:
        raise ConfigError("the checkpoint has no transformer")
    two = pipeline.transformer_2 is not None
    if two != (pipeline.config.boundary_ratio is not None):
        raise ConfigError(
            "a Wan checkpoint has either two transformers and a boundary_ratio, or neither; "
            f"this one has transformer_2: {two}, boundary_ratio: {pipeline.config.boundary_ratio}"
        )
    if guidance_scale_2 is not None and not two:
        raise ConfigError("guidance_scale_2 is for two transformers, and the checkpoint has one")
    vae, config = pipeline.vae.config, pipeline.transformer.config
    channels = vae.z_dim
    if reads_pictures(pipeline):
        channels = 2 * vae.z_dim + vae.scale_factor_temporal
    if config.in_channels != channels:
        raise ConfigError(
            f"a {type(pipeline).__name__} has a transformer with {channels} input channels for a "
            f"VAE with {vae.z_dim}; this one has {config.in_channels}, so it is of another kind"
        )
    if config.image_dim is not None:
        if pipeline.image_encoder is None or pipeline.image_processor is None:
            raise ConfigError("the transformer reads image embeddings and there is no encoder")
        if prompt_tokens != TEXT_TOKENS_BESIDE_IMAGES:
            raise ConfigError(
                f"load.prompt_tokens must be {TEXT_TOKENS_BESIDE_IMAGES} for a checkpoint with "
                f"an image encoder, not {prompt_tokens}"
            )
