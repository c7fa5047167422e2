"""The training of the demo model: whole clips at once, and nothing lost to a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from torch import nn

from deployments.demo_models.training import Training, optimizers
from deployments.demo_models.video import train, train_codec, train_denoiser
from deployments.demo_models.video.codec import decode, encode, new_codec
from deployments.demo_models.video.denoiser import (
    ATTRIBUTES,
    PROMPT_TOKENS,
    Denoiser,
    new_pipeline,
    new_tokenizer,
)
from deployments.demo_models.video.train_codec import Bank, Pieces, Stage
from deployments.demo_models.video.train_denoiser import Bucket
from deployments.demo_models.video.world import every_caption, scenes
from serving.models import text_embedding
from tests.trainings import interrupted_after

CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_whole_clips_are_coded_as_the_library_does_it(frames: int) -> None:
    torch.manual_seed(1)
    codec = new_codec().eval()
    pixels = torch.rand(2, 3, frames, 48, 32) * 2 - 1
    latents = encode(codec, pixels)
    torch.testing.assert_close(latents, codec.encode(pixels).latent_dist.mode())
    again = decode(codec, latents).clamp(-1, 1)
    torch.testing.assert_close(again, codec.decode(latents).sample, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_denoiser_predicts_and_reads_as_the_pipeline_does() -> None:
    torch.manual_seed(1)
    tokenizer = new_tokenizer()
    denoiser = Denoiser(len(tokenizer)).eval()
    pipeline = new_pipeline(denoiser, new_codec(), tokenizer)
    captions = ["a red ball moving right on a white background", "", "blue star"]
    read = tokenizer(captions, padding=True, return_tensors="pt")
    text = denoiser.text(read.input_ids, read.attention_mask)
    for caption, ours in zip(captions, text, strict=True):
        theirs = text_embedding.embed(pipeline, caption, PROMPT_TOKENS, CPU, torch.float32)[0]
        torch.testing.assert_close(ours, theirs[: len(ours)], atol=1e-5, rtol=1e-4)
        assert not theirs[len(ours) :].any()
    latents, times = torch.randn(3, 24, 3, 4, 5), torch.rand(3, 60) * 1000
    padded = nn.functional.pad(text, (0, 0, 0, PROMPT_TOKENS - text.shape[1]))
    theirs = denoiser.transformer(latents, times, padded, return_dict=False)[0]
    torch.testing.assert_close(denoiser(latents, times, text), theirs, atol=1e-5, rtol=1e-4)


def test_every_word_of_the_world_is_a_token_and_any_text_has_some() -> None:
    tokenizer = new_tokenizer()
    for said in every_caption():
        words = said.replace(",", " ,").split()
        assert len(tokenizer.tokenize(said)) == len(words), said
    assert tokenizer.decode(
        tokenizer("Ünïcode 漢字")["input_ids"], skip_special_tokens=True
    ).strip()


def test_the_heads_can_be_learned_from() -> None:
    torch.manual_seed(1)
    denoiser = Denoiser(len(new_tokenizer()))
    with pytest.raises(RuntimeError, match="no forward"):
        denoiser.where_loss((2, 3, 4))
    text, mask = torch.randn(2, 5, 128), torch.ones(2, 5)
    denoiser(torch.randn(2, 24, 2, 3, 4), torch.full((2, 24), 900.0), text)
    torch.autograd.backward(denoiser.where_loss((2, 3, 4)))
    assert denoiser.transformer.blocks[0].attn1.to_q.weight.grad is not None
    said = list(scenes(held_out=False)[:2])
    assert 0 < denoiser.what_loss(text, mask, said) < sum(map(len, ATTRIBUTES.values()))


def test_pieces_are_the_same_for_the_same_step() -> None:
    bank, again = (Bank(Pieces(5, 16, 16, batch=3, bank=4), seed=1) for _ in range(2))
    assert torch.equal(bank.batch(7), again.batch(7))
    assert not torch.equal(bank.batch(7), bank.batch(8))
    assert bank.batch(7).shape == (3, 3, 5, 16, 16)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole training, of seconds."""
    small = Pieces(5, 16, 16, batch=2, bank=3)
    stages = (Stage("first", (small,), steps=2), Stage("second", (small, small), steps=2))
    monkeypatch.setattr(train_codec, "STAGES", stages)
    monkeypatch.setattr(train_codec, "MEASURED", 8)
    monkeypatch.setattr(train_denoiser, "TEXT_STEPS", 1)
    monkeypatch.setattr(train_denoiser, "TOKENS_A_STEP", 32)
    buckets = (Bucket(5, 32, 32, early=1, late=0), Bucket(9, 32, 48, early=0, late=1))
    monkeypatch.setattr(train_denoiser, "BUCKETS", buckets)


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> WanPipeline:
    monkeypatch.setattr("sys.argv", ["train", str(folder), "--device", "cpu", "--steps", "5"])
    train.main()
    pipeline: WanPipeline = WanPipeline.from_pretrained(folder / "checkpoint")
    return pipeline


def test_one_command_trains_all_of_it_and_goes_on_where_it_was_stopped(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path / "whole", monkeypatch)
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'whole' / 'checkpoint'}\n"
    assert "step 5 of 5, loss" in said.err
    assert whole.config.expand_timesteps
    assert whole.vae.config.latents_std != [1.0] * 24
    for steps in (3, 3):  # in the codec's second stage, and amid the denoiser's steps
        with monkeypatch.context() as patch:
            patch.setattr(Training, "_take_step", interrupted_after(steps))
            with pytest.raises(KeyboardInterrupt):
                trained(tmp_path / "parts", patch)
    parts = trained(tmp_path / "parts", monkeypatch)
    for part in ("vae", "text_encoder", "transformer"):
        ours, theirs = getattr(whole, part).state_dict(), getattr(parts, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.Linear(4, 4)
        self.last = nn.Linear(4, 1)


def training(state: Path, interrupted_at: int | None = None) -> Training[Line]:
    module = Line()

    def loss(step: int) -> tuple[torch.Tensor, str]:
        if step == interrupted_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return ((module.last(module.blocks(x)) - x.sum(dim=1, keepdim=True)) ** 2).mean(), "fits"

    made = optimizers(module, muon=1e-2, adamw=1e-2)
    assert len(made) == 2
    return Training(module, made, loss, state=state, steps=12, warmup=3)


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    said: list[str] = []
    whole = training(tmp_path / "whole.pt")
    whole.run(say=said.append)
    for until in (1, 5, 5, 12):
        parts = training(tmp_path / "parts.pt")
        parts.run(until, say=said.append)
    assert parts.step == whole.step == 12
    for name in ("module", "averaged"):
        for one, other in zip(
            getattr(whole, name).parameters(), getattr(parts, name).parameters(), strict=True
        ):
            assert torch.equal(one, other)
    assert said[0].startswith("step 12 of 12, loss ")


def test_what_was_not_saved_to_its_end_is_not_gone_on_from(tmp_path: Path) -> None:
    first = training(tmp_path / "line.pt")
    first.run(4, say=lambda line: None)
    (tmp_path / "line.new").write_bytes(b"half of a sta")
    assert training(tmp_path / "line.pt").step == 4


def test_ctrl_c_saves(tmp_path: Path) -> None:
    state = tmp_path / "line.pt"
    with pytest.raises(KeyboardInterrupt):
        training(state, interrupted_at=3).run(say=lambda line: None)
    assert training(state).step == 3
