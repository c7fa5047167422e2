"""The training of the demo sound model: it goes on exactly where it was stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, StableAudioPipeline

from deployments.demo_models.sound import train, train_codec, train_denoiser
from deployments.demo_models.sound.codec import LATENT_NOISE, encode, new_codec
from deployments.demo_models.sound.denoiser import Denoiser, new_scheduler, noised, sigmas
from deployments.demo_models.sound.latents import LATENT_CHANNELS, latents_of
from deployments.demo_models.sound.measure import load
from deployments.demo_models.sound.render import FRAME, FRAMES, SAMPLES, compose, perform
from deployments.demo_models.sound.text import new_tokenizer, tokenize
from deployments.demo_models.sound.world import Sound, training_sounds
from deployments.demo_models.training import Training
from tests.trainings import interrupted_after


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole training, of seconds."""
    monkeypatch.setattr(train_codec, "DECODER_STEPS", 4)
    monkeypatch.setattr(train_codec, "ENCODER_STEPS", 4)
    monkeypatch.setattr(train_codec, "CROPS", 1)
    monkeypatch.setattr(train_denoiser, "TEXT_STEPS", 2)
    monkeypatch.setattr(train_denoiser, "BATCH", 2)


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StableAudioPipeline:
    monkeypatch.setattr("sys.argv", ["train", str(folder), "--device", "cpu", "--steps", "5"])
    train.main()
    pipeline: StableAudioPipeline = load(folder / "checkpoint")
    return pipeline


def test_one_command_trains_all_of_it_and_goes_on_where_it_was_stopped(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path / "whole", monkeypatch)
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'whole' / 'checkpoint'}\n"
    assert "step 5 of 5, loss" in said.err
    assert whole.vae.config.sampling_rate == 8_000
    for steps in (3, 3, 4):  # in the decoder's steps, in the encoder's, amid the denoiser's
        with monkeypatch.context() as patch:
            patch.setattr(Training, "_take_step", interrupted_after(steps))
            with pytest.raises(KeyboardInterrupt):
                trained(tmp_path / "parts", patch)
    parts = trained(tmp_path / "parts", monkeypatch)
    for part in ("vae", "text_encoder", "projection_model", "transformer"):
        ours, theirs = getattr(whole, part).state_dict(), getattr(parts, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part


def test_a_decoder_plays_the_scores_tones_before_it_has_learned_anything() -> None:
    torch.manual_seed(0)
    codec = new_codec().eval()
    for sound in (Sound("tone", ("high", "loud")), Sound("glide", ("falling", "slow", "loud"))):
        score = compose(sound, 2.0, 1)
        audio = perform(score, 1)
        with torch.no_grad():
            made = codec.decode(torch.from_numpy(latents_of(score, audio))[None]).sample
        assert made.shape == (1, 1, SAMPLES)
        error = made[0, 0].numpy() - audio
        assert np.mean(error**2) < 0.1 * np.mean(audio**2)


def test_the_posterior_is_as_wide_as_the_noise_that_the_decoder_forgives() -> None:
    codec = new_codec().eval()
    posterior = codec.encode(torch.randn(1, 1, SAMPLES)).latent_dist
    assert posterior.mean.shape == (1, LATENT_CHANNELS, FRAMES)
    assert torch.allclose(posterior.std, torch.tensor(LATENT_NOISE), atol=2e-2)
    assert encode(codec, torch.zeros(2, 1, 3 * FRAME)).shape == (2, LATENT_CHANNELS, 3)


def test_a_decoder_too_narrow_for_its_voices_is_refused() -> None:
    with pytest.raises(ValueError, match="too few channels"):
        new_codec(width=8)


def test_the_denoiser_learns_what_the_scheduler_makes_of_its_answers() -> None:
    """A network that always gives the training's target makes the pipeline find the data."""
    scheduler = new_scheduler()
    assert isinstance(scheduler, EDMDPMSolverMultistepScheduler)
    torch.manual_seed(1)
    data, noise = torch.randn(2, 1, LATENT_CHANNELS, 8)
    scheduler.set_timesteps(10)
    sample = data + noise * scheduler.sigmas[0]
    for time in scheduler.timesteps:
        seen = scheduler.scale_model_input(sample, time)
        sigma = scheduler.sigmas[scheduler.step_index]
        assert torch.allclose(time, sigma.log() / 4)
        ours, target = noised(data, (sample - data) / sigma, sigma[None])
        assert torch.allclose(seen, ours, atol=1e-5)
        sample = scheduler.step(target, time, sample).prev_sample
    assert torch.allclose(sample, data, atol=1e-4)


def test_a_dropped_caption_is_what_the_pipeline_guides_away_from() -> None:
    """Zeros for text and seconds, and the seconds still in the global states."""
    torch.manual_seed(2)
    model, tokenizer = Denoiser(layers=1, heads=1).eval(), new_tokenizer()
    seen = torch.randn(1, LATENT_CHANNELS, FRAMES)

    @torch.no_grad()
    def predicted(text: str, seconds: float, dropped: bool) -> list[float]:
        ids, mask = tokenize(tokenizer, [text])
        levels, ends = torch.tensor([[1.0], [seconds]])
        found: torch.Tensor = model(
            seen, levels, model.text(ids, mask), mask, ends, torch.tensor([dropped])
        )
        values: list[float] = found.flatten().tolist()
        return values

    assert predicted("a low tone", 2.0, dropped=True) == predicted("3 beeps", 2.0, dropped=True)
    assert predicted("a low tone", 2.0, dropped=False) != predicted("3 beeps", 2.0, dropped=False)
    assert predicted("a low tone", 2.0, dropped=True) != predicted("a low tone", 3.0, dropped=True)


def test_the_heads_can_be_learned_from() -> None:
    torch.manual_seed(3)
    model = Denoiser(layers=2, heads=1)
    with pytest.raises(RuntimeError, match="no forward"):
        model.where_loss()
    ids, mask = tokenize(new_tokenizer(), ["a low tone", "3 beeps"])
    text, ones = model.text(ids, mask), torch.ones(2)
    model(torch.randn(2, LATENT_CHANNELS, FRAMES), ones, text, mask, ones, ones > 0)
    where, what = model.where_loss(), model.what_loss(text, mask, training_sounds()[:2])
    assert math.isclose(where.item(), math.log(FRAMES), rel_tol=0.2)
    torch.autograd.backward(where + what)
    for part in (model.transformer.transformer_blocks[0].attn1.to_q, model.text_encoder.shared):
        assert part.weight.grad is not None


def test_noise_levels_cover_the_range_that_is_sampled() -> None:
    scheduler = new_scheduler()
    levels = sigmas(torch.linspace(0, 1, 1_001))
    assert math.isclose(float(levels[0]), scheduler.config.sigma_min, rel_tol=1e-3)
    assert math.isclose(float(levels[-1]), scheduler.config.sigma_max, rel_tol=1e-3)
    assert np.all(np.diff(levels.numpy()) > 0)


def test_unknown_words_are_tokens_too() -> None:
    ids, mask = tokenize(new_tokenizer(), ["A LOUD zebra, rising"])
    known, _ = tokenize(new_tokenizer(), ["a loud , rising"])
    assert int(mask.sum()) == 6
    assert ids[0, 2] == new_tokenizer().unk_token_id
    assert known[0, :2].tolist() == ids[0, :2].tolist()
