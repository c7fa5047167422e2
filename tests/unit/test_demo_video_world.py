"""The world of the demo model and the checker that tells what a clip of it shows."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch

from deployments.demo import PROMPT
from deployments.demo_models.video.checker import Frames, Seen, see
from deployments.demo_models.video.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Clip,
    Scene,
    Take,
    caption,
    drawn_clip,
    every_caption,
    render,
    scenes,
)

ATTRIBUTES = ("colour", "shape", "motion", "background")
RED_BALL = Scene("red", "ball", "right", "white")


def pictures(clip: Clip, frames: int = 32, height: int = 96, width: int = 96) -> Frames:
    pixels = render([clip], frames, height, width)[0]
    shown: Frames = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    return shown


def take(seed: int = 0) -> Take:
    return Take.drawn(random.Random(seed))


def test_what_is_held_out_is_new_only_as_a_combination() -> None:
    seen, held_out = scenes(held_out=False), scenes(held_out=True)
    assert not set(seen) & set(held_out)
    assert len(seen) + len(held_out) == 8 * 5 * 7 * 4
    assert len(held_out) >= 200
    # Each two attributes were seen together.
    for first, second in combinations(ATTRIBUTES, 2):
        pairs = {(getattr(scene, first), getattr(scene, second)) for scene in seen}
        assert pairs >= {(getattr(scene, first), getattr(scene, second)) for scene in held_out}


def test_captions() -> None:
    assert caption(RED_BALL) == PROMPT
    assert caption(Scene("orange", "star", "still", "black")).startswith("an orange star standing")
    draw = random.Random(1)
    said = {caption(RED_BALL, draw) for _ in range(200)}
    assert len(said) > 100
    words = {word for each in every_caption() for word in each.replace(",", "").split()}
    assert {word for each in said for word in each.replace(",", "").split()} <= words


@pytest.mark.parametrize(("frames", "height", "width"), [(32, 96, 96), (8, 80, 144), (16, 144, 80)])
def test_the_checker_is_right_about_what_the_world_draws(
    frames: int, height: int, width: int
) -> None:
    chance = random.Random(f"{frames} {height} {width}")
    for shape in SHAPES:
        for motion in MOTIONS:
            scene = Scene(
                chance.choice(list(COLOURS)), shape, motion, chance.choice([*BACKGROUNDS])
            )
            shown = see(pictures(Clip(scene, Take.drawn(chance)), frames, height, width))
            assert shown.right(scene)["all"], (scene, shown)


def test_the_checker_is_right_about_every_colour_on_every_background() -> None:
    for colour in COLOURS:
        for background in BACKGROUNDS:
            scene = Scene(colour, "star", "up", background)
            assert see(pictures(Clip(scene, take()), frames=6)).right(scene)["all"], scene


def test_what_runs_backwards_moves_the_other_way() -> None:
    for forwards, backwards in (("right", "left"), ("down", "up"), ("growing", "shrinking")):
        scene = Scene("blue", "ring", forwards, "grey")
        assert see(pictures(Clip(scene, take()))[::-1]).motion == backwards


def test_what_shows_nothing_is_nothing() -> None:
    plain = np.full((8, 96, 96, 3), 245, np.uint8)
    assert see(plain) == Seen(None, None, None, "white")
    noise = np.random.default_rng(1).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    assert see(noise).shape is None
    # Half a ball and half a square are neither.
    halves = np.concatenate(
        [
            pictures(Clip(Scene("red", "ring", "still", "white"), take()))[:, :, :48],
            plain[:1].repeat(32, 0)[:, :, 48:],
        ],
        axis=2,
    )
    assert see(halves).shape != "ring"
    with pytest.raises(ValueError, match="uint8"):
        see(plain.astype(np.float32))


def test_a_take_is_the_same_for_the_same_seed() -> None:
    first, second = drawn_clip(random.Random(3)), drawn_clip(random.Random(3))
    assert first == second
    assert torch.equal(render([first], 5, 96, 96), render([second], 5, 96, 96))
