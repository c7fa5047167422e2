"""The training of the demo sound model: it goes on exactly where it was stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler

from deployments.demo_models.sound import train
from deployments.demo_models.sound.codec import LATENT_NOISE, encode, new_codec
from deployments.demo_models.sound.denoiser import (
    Denoiser,
    new_projection,
    new_scheduler,
    new_transformer,
    sigmas,
)
from deployments.demo_models.sound.latents import LATENT_CHANNELS, latents_of
from deployments.demo_models.sound.measure import load
from deployments.demo_models.sound.render import FRAME, FRAMES, SAMPLES, compose, perform
from deployments.demo_models.sound.stages import Plan
from deployments.demo_models.sound.text import new_encoder, new_tokenizer, tokenize
from deployments.demo_models.sound.train import OutOfTime, Run
from deployments.demo_models.sound.world import Sound

TINY = Plan(
    decoder_steps=4,
    encoder_steps=4,
    codec_batch=1,
    text_steps=4,
    text_batch=4,
    clips=4,
    denoiser_steps=4,
    denoiser_batch=2,
    layers=1,
    heads=1,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def states(out: Path) -> dict[str, Any]:
    return {
        file.stem: torch.load(file, weights_only=True)
        for file in sorted((out / "training").glob("*.pt"))
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


class DiesAfter(Run):
    """A run whose process is gone after so many steps, with the state of every second one."""

    def __init__(self, steps: int, out: Path) -> None:
        super().__init__(out, TINY, CPU)
        self.left = steps

    def go_through(self, stage: Any) -> None:
        step = stage.step

        def counted(number: int) -> float:
            if self.left == 0:
                raise MemoryError
            self.left -= 1
            return float(step(number))

        stage.step = counted
        super().go_through(stage)


def test_a_training_that_dies_again_and_again_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY_S", -1.0)
    Run(tmp_path / "whole", TINY, CPU).train()
    deaths = 0
    while True:
        try:
            DiesAfter(3, tmp_path / "pieces").train()
        except MemoryError:
            deaths += 1
        else:
            break
    assert deaths == 6  # of 20 steps, three at a time
    whole, pieces = states(tmp_path / "whole"), states(tmp_path / "pieces")
    assert set(whole) == {"decoder", "encoder", "text", "latents", "denoiser"}
    for name, saved in whole.items():
        assert saved["done"] == 4
        assert equal(saved["state"], pieces[name]["state"]), name
    for file in (tmp_path / "whole").rglob("*.safetensors"):
        twin = tmp_path / "pieces" / file.relative_to(tmp_path / "whole")
        assert file.read_bytes() == twin.read_bytes()


def test_what_was_written_halfway_when_the_process_died_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "decoder.new").write_bytes(b"half a state")
    Run(tmp_path, TINY, CPU).train()
    assert load(tmp_path).vae.config.sampling_rate == 8_000


def test_a_run_out_of_time_says_so_and_has_saved_its_state(tmp_path: Path) -> None:
    shown: list[str] = []
    with pytest.raises(OutOfTime):
        Run(tmp_path, TINY, CPU, seconds=0.0, show=shown.append).train()
    assert shown[-1].startswith("decoder 1/4  loss ")
    assert states(tmp_path)["decoder"]["done"] == 1


def test_the_command_starts_stops_resumes_and_does_not_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path), "--device", "cpu", "--threads", "1"]
    assert train.main([*out, "--minutes", "0", "--seed", "5"]) == 0
    assert "go on with --resume" in capsys.readouterr().err
    plan = json.loads((tmp_path / "training" / "plan.json").read_text())
    assert plan["seed"] == 5
    with pytest.raises(SystemExit, match="has a training"):
        train.main(out)
    with pytest.raises(SystemExit, match="has seed 5"):
        train.main([*out, "--resume", "--seed", "6"])
    assert train.main([*out, "--resume", "--minutes", "0"]) == 0
    assert states(tmp_path)["decoder"]["done"] == 2
    assert train.main([*out, "--restart", "--minutes", "0"]) == 0
    assert states(tmp_path)["decoder"]["done"] == 1
    with pytest.raises(SystemExit, match="no training"):
        train.main(["--out", str(tmp_path / "elsewhere"), "--resume"])


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
        norm = (1 + sigma**2).sqrt()
        assert torch.allclose(seen, sample / norm)
        current_noise = (sample - data) / sigma
        target = (current_noise - sigma * data) / norm
        sample = scheduler.step(target, time, sample).prev_sample
    assert torch.allclose(sample, data, atol=1e-4)


def test_a_dropped_caption_is_what_the_pipeline_guides_away_from() -> None:
    """Zeros for text and seconds, and the seconds still in the global states."""
    torch.manual_seed(2)
    model = Denoiser(new_encoder(), new_projection(), new_transformer(1, 1)).eval()
    tokenizer = new_tokenizer()
    latents, noise = torch.randn(2, 1, LATENT_CHANNELS, FRAMES)

    def loss(text: str, seconds: float, dropped: bool) -> float:
        ids, mask = tokenize(tokenizer, [text])
        with torch.no_grad():
            return float(
                model(
                    latents,
                    noise,
                    torch.tensor([1.0]),
                    ids,
                    mask,
                    torch.tensor([seconds]),
                    torch.tensor([dropped]),
                )
            )

    assert loss("a low tone", 2.0, dropped=True) == loss("three beeps", 2.0, dropped=True)
    assert loss("a low tone", 2.0, dropped=False) != loss("three beeps", 2.0, dropped=False)
    assert loss("a low tone", 2.0, dropped=True) != loss("a low tone", 3.0, dropped=True)


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
