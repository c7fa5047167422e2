"""The world of the demo sound model: its captions, its held-out sounds, and who hears them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import pytest

from deployments.demo_models.sound.captions import (
    SENTENCES,
    WORDS,
    caption,
    complete,
    held_out,
    vocabulary,
)
from deployments.demo_models.sound.checker import hear, verdict
from deployments.demo_models.sound.measure import questions
from deployments.demo_models.sound.render import SAMPLES, render
from deployments.demo_models.sound.text import training_caption
from deployments.demo_models.sound.world import (
    AXES,
    DURATION_S_MAX,
    DURATION_S_MIN,
    HELD_OUT,
    SAMPLING_RATE_HZ,
    Sound,
    all_sounds,
    held_out_sounds,
    training_sounds,
)


def heard(sound: Sound, seed: int, duration_s: float = 2.2) -> Any:
    return render(sound, duration_s, seed)[: int(duration_s * SAMPLING_RATE_HZ)]


def test_training_and_held_out_sounds_share_nothing_and_are_all_there_is() -> None:
    assert set(training_sounds()) | set(held_out_sounds()) == set(all_sounds())
    assert not set(training_sounds()) & HELD_OUT
    assert len(held_out_sounds()) == len(HELD_OUT) == 12
    assert {sound.kind for sound in HELD_OUT} == set(AXES)


def test_training_hears_every_value_that_a_held_out_sound_has() -> None:
    known = {
        (sound.kind, axis, value)
        for sound in training_sounds()
        for axis, value in sound.attributes.items()
    }
    for sound in held_out_sounds():
        for axis, value in sound.attributes.items():
            assert (sound.kind, axis, value) in known


def test_of_three_values_held_out_together_training_hears_every_two() -> None:
    def pairs(sound: Sound) -> set[tuple[str, ...]]:
        return {(sound.kind, *pair) for pair in combinations(sound.values, 2)}

    known = {pair for sound in training_sounds() for pair in pairs(sound)}
    for sound in held_out_sounds():
        if len(sound.values) == 3:
            assert pairs(sound) <= known
        else:
            assert not pairs(sound) & known


@pytest.mark.parametrize(
    ("kind", "values"), [("song", ()), ("tone", ("low",)), ("tone", ("soft", "low"))]
)
def test_a_sound_that_is_not_of_this_world_is_refused(kind: str, values: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no such sound"):
        Sound(kind, values)


def test_a_complete_caption_names_every_value_in_one_of_its_words() -> None:
    random = Random(1)
    for sound in all_sounds():
        for _ in range(20):
            text = f" {complete(sound, random).replace(',', ' ')} "
            for axis in AXES[sound.kind]:
                words = WORDS[axis][sound[axis]]
                assert any(f" {word} " in text for word in words), (text, axis)


def test_no_word_stands_for_two_values_of_one_axis() -> None:
    for values in WORDS.values():
        words = [word for texts in values.values() for word in texts]
        assert len(words) == len(set(words))


def test_captions_are_made_of_the_vocabulary_and_leave_no_stray_commas() -> None:
    random, words = Random(2), set(vocabulary())
    for sound in all_sounds():
        for _ in range(30):
            text = caption(sound, random, shortened=0.6)
            tokens = text.replace(",", " ,").split()
            assert set(tokens) <= words
            assert tokens[-1] not in (",", "and")
            assert tokens[0] != ","
            assert ", ," not in " ".join(tokens)


def test_training_never_says_what_it_is_asked_about() -> None:
    random = Random(4)
    trained = {training_caption(sound, random) for sound in training_sounds() for _ in range(100)}
    asked = questions((*training_sounds(), *held_out_sounds()), captions=4, seeds=[1, 2])
    assert len(asked) == 8 * len(all_sounds())
    assert not trained & {each.caption for each in asked if each.sound not in HELD_OUT}
    assert {each.sound for each in asked} == set(all_sounds())
    # What is kept is one in ten, of every kind of sentence.
    every = {complete(sound, random) for sound in all_sounds() for _ in range(100)}
    assert 0.07 < sum(map(held_out, every)) / len(every) < 0.13


def test_a_caption_can_be_said_in_many_ways() -> None:
    random = Random(3)
    for sound in all_sounds():
        assert len({complete(sound, random) for _ in range(200)}) >= 20
    assert set(SENTENCES) == set(AXES)


def test_a_seed_renders_the_same_clip_and_another_seed_another() -> None:
    sound = Sound("beeps", ("3", "high", "loud"))
    assert np.array_equal(render(sound, 2.0, 1), render(sound, 2.0, 1))
    assert not np.array_equal(render(sound, 2.0, 1), render(sound, 2.0, 2))


def test_a_clip_is_silent_after_its_end_and_never_clipped() -> None:
    for index, sound in enumerate(all_sounds()):
        clip = render(sound, DURATION_S_MIN, index)
        assert clip.shape == (SAMPLES,)
        assert np.abs(clip).max() < 1.0
        assert not clip[int(DURATION_S_MIN * SAMPLING_RATE_HZ) :].any()
    with pytest.raises(ValueError, match="up to"):
        render(sound, DURATION_S_MAX + 0.1, 0)


def test_the_checker_is_right_about_every_clip_that_we_render() -> None:
    random = np.random.default_rng(20261129)
    clips = 0
    for sound in all_sounds():
        durations_s = [DURATION_S_MIN, DURATION_S_MAX, *random.uniform(1.5, 3.0, size=8)]
        for duration_s in durations_s:
            seed = int(random.integers(2**31))
            found = verdict(sound, heard(sound, seed, float(duration_s)))
            assert all(found.values()), (sound, duration_s, seed, found)
            clips += 1
    assert clips == 580


def test_the_checker_takes_no_sound_for_another() -> None:
    random = np.random.default_rng(7)
    clips = {sound: heard(sound, int(random.integers(2**31))) for sound in all_sounds()}
    for made, clip in clips.items():
        for asked in all_sounds():
            found = verdict(asked, clip)
            if asked.kind != made.kind:
                assert not any(found.values())
            else:
                assert found == {
                    axis: made.attributes[axis] == value for axis, value in asked.attributes.items()
                }


def test_the_checker_hears_nothing_in_silence_hum_and_garbage() -> None:
    seconds = np.arange(16_000) / SAMPLING_RATE_HZ
    wobble = np.cumsum(600 + 300 * np.sin(2 * np.pi * 2 * seconds)) / SAMPLING_RATE_HZ
    nothing = [
        np.zeros(16_000),
        np.full(16_000, 0.5),
        0.003 * np.sin(2 * np.pi * 500 * seconds),
        np.full(16_000, np.nan),
        np.zeros(100),
        0.5 * np.sin(2 * np.pi * wobble),
    ]
    assert [hear(audio) for audio in nothing] == [None] * len(nothing)


def test_what_lies_between_two_answers_is_no_answer() -> None:
    seconds = np.arange(16_000) / SAMPLING_RATE_HZ
    between = hear(0.5 * np.sin(2 * np.pi * 370 * seconds))  # between low and middle
    assert between is not None
    assert between.values == {"loudness": "loud"}
    level = hear(0.24 * np.sin(2 * np.pi * 580 * seconds))  # between soft and loud
    assert level is not None
    assert level.values == {"pitch": "middle"}


def test_beeps_of_two_pitches_or_with_a_long_one_among_them_are_not_beeps() -> None:
    low, high = (heard(Sound("beeps", ("1", pitch, "loud")), 4) for pitch in ("low", "high"))
    assert hear(np.concatenate([low, high])) is None
    tone = heard(Sound("tone", ("low", "loud")), 4, 1.5)
    assert hear(np.concatenate([low, tone])) is None


def test_a_glide_up_and_down_is_not_a_glide() -> None:
    up, down = (heard(Sound("glide", (way, "slow", "loud")), 5) for way in ("rising", "falling"))
    both = hear(np.concatenate([up[:-500], down[500:]]))
    assert both is None or both.kind != "glide"


def test_the_checker_bears_a_little_noise_on_everything() -> None:
    random = np.random.default_rng(8)
    wrong: Counter[str] = Counter()
    for index, sound in enumerate(all_sounds()):
        clip = heard(sound, index)
        noisy = clip + 0.004 * random.standard_normal(len(clip))
        wrong[sound.kind] += not all(verdict(sound, noisy).values())
    assert sum(wrong.values()) == 0, wrong
