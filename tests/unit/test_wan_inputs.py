"""Pictures a model cannot use are refused in words that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from serving.models.family import NO_INPUTS, Inputs
from serving.plan.errors import InvalidInput
from tests import wan
from tests.wan import small

FIRST = wan.picture(1)
NO_PIXELS = np.zeros((0, 4, 3), dtype=np.uint8)
GREY: Any = FIRST[..., 0]


@pytest.mark.parametrize(
    ("make", "inputs", "param", "words"),
    [
        (wan.text, Inputs(first_frame=FIRST), "first_frame", "takes no first frame; .* to a model"),
        (wan.text_of_two, Inputs(last_frame=FIRST), "last_frame", r"takes: text, a video \(opt"),
        (wan.ti2v, Inputs(first_frame=FIRST, last_frame=FIRST), "last_frame", "no last frame"),
        (wan.ti2v, Inputs(first_frame=FIRST, video=wan.video()), "video", "send either"),
        (wan.picture_of_two, NO_INPUTS, "first_frame", "needs a first frame; send one"),
        (wan.picture_of_two, Inputs(last_frame=FIRST), "first_frame", "needs a first frame"),
        (wan.picture_of_two, Inputs(first_frame=FIRST, video=wan.video()), "video", "no video"),
        (wan.picture_seen, Inputs(first_frame=FIRST, last_frame=FIRST), "last_frame", "no last"),
        (wan.pictures_seen, Inputs(first_frame=FIRST), "last_frame", "needs a last frame"),
        (wan.ti2v, Inputs(first_frame=GREY), "first_frame", r"8-bit RGB .* shape \[40, 56\]"),
        (wan.ti2v, Inputs(first_frame=NO_PIXELS), "first_frame", "at least one pixel"),
        (wan.ti2v, Inputs(first_frame=FIRST / 255), "first_frame", "it is float64"),
        (wan.text, Inputs(video=FIRST), "video", r"shape \[40, 56, 3\]"),
        (wan.text, Inputs(video=wan.video(7)), "video", "has 7 frames and the clip 8: 1 s at 8"),
        (wan.text, Inputs(video=wan.video(), strength=1.1), "strength", "from 0 to 1, not 1.1"),
        (wan.text, Inputs(video=wan.video(), strength=float("nan")), "strength", "not nan"),
        (wan.text, Inputs(video=wan.video(), strength=0.24), "strength", "Send at least 0.25"),
    ],
)
def test_what_cannot_be_used_is_named(
    make: Callable[[], Any], inputs: Inputs, param: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        wan.family_of(make()).begin(small(), inputs)
    assert (caught.value.param, caught.value.code) == (param, "invalid_input")
    assert not caught.value.retryable


def test_a_clip_of_one_frame_has_no_last_one() -> None:
    inputs = Inputs(first_frame=FIRST, last_frame=FIRST)
    with pytest.raises(InvalidInput, match="has no last one"):
        wan.family_of(wan.picture_of_two()).begin(small(fps=1), inputs)


def test_an_operator_may_offer_less_than_the_checkpoint_can() -> None:
    family = wan.family_of(wan.text(), inputs={})
    with pytest.raises(InvalidInput, match=r"It takes: text\."):
        family.begin(small(), Inputs(video=wan.video()))


def test_a_first_frame_of_any_size_is_scaled_to_the_clip() -> None:
    family = wan.family_of(wan.ti2v())
    tall = np.full((90, 30, 3), 200, dtype=np.uint8)
    square = np.full((32, 32, 3), 200, dtype=np.uint8)
    runs = [family.begin(small(), Inputs(first_frame=frame)) for frame in (tall, square)]
    assert torch.equal(runs[0].latents, runs[1].latents)


@pytest.mark.parametrize("steps_done", [0, 1, wan.STEPS])
def test_the_first_latent_frame_of_ti2v_stays_the_given_picture(steps_done: int) -> None:
    family = wan.family_of(wan.ti2v())
    run = family.begin(small(), Inputs(first_frame=FIRST))
    given = run.latents[:, :, :1].clone()
    rest = run.latents[:, :, 1:].clone()
    for _ in range(steps_done):
        family.step([run])
    assert torch.equal(run.latents[:, :, :1], given)
    assert torch.equal(run.latents[:, :, 1:], rest) == (steps_done == 0)


def test_strength_decides_how_much_of_the_video_is_left() -> None:
    family = wan.family_of(wan.text())
    video = wan.video()
    kept = family.begin(small(), Inputs(video=video, strength=0.25))
    lost = family.begin(small(), Inputs(video=video, strength=1.0))
    assert (kept.step, lost.step) == (3, 0)
    noise = family.begin(small()).latents
    assert torch.allclose(lost.latents, noise, atol=0.01)
    assert not torch.allclose(kept.latents, noise, atol=0.1)
