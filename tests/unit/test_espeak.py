"""espeak-ng, the real library, in this process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import aclosing

import numpy as np
import pytest

from serving.models import espeak as module
from serving.models.espeak import VARIANTS, Espeak, Library, espeak
from serving.models.local_speaker import LocalSpeaker
from serving.plan.errors import ConfigError, InvalidRequest
from tests.tools import ROOT

SENTENCE = "The quick brown fox jumps over the lazy dog."


def seconds(pcm: bytes) -> float:
    return len(pcm) / 2 / espeak().sample_rate_hz


def test_a_sentence_is_heard() -> None:
    pcm = espeak().say(SENTENCE, "en-us")
    samples = np.frombuffer(pcm, "<i2").astype(float)
    assert 1.5 < seconds(pcm) < 5
    assert np.sqrt((samples**2).mean()) > 500


def test_every_voice_speaks() -> None:
    engine = espeak()
    assert len(engine.voices) > 500
    assert [each.id for each in engine.voices] == sorted(each.id for each in engine.voices)
    plain = [each for each in engine.voices if "+" not in each.id]
    assert {each.language for each in plain} == {each.id for each in plain}
    for voice in (*plain, *(each for each in engine.voices if each.language == "en-us")):
        assert seconds(engine.say("2 x", voice.id)) > 0.1, voice


def test_a_variant_sounds_otherwise() -> None:
    engine = espeak()
    heard = {engine.say(SENTENCE, f"en-us+{variant}") for variant in VARIANTS}
    assert len(heard) == len(VARIANTS)


def test_a_voice_there_is_not_is_refused() -> None:
    for name in ("", "klingon", "en-us+", "en-us+xx"):
        with pytest.raises(InvalidRequest, match="There is no voice") as raised:
            espeak().say(SENTENCE, name)
        assert raised.value.param == "voice"


def test_speed_is_how_fast_words_come() -> None:
    normal, double = (seconds(espeak().say(SENTENCE, "en-us", speed)) for speed in (1.0, 2.0))
    assert double == pytest.approx(normal / 2, rel=0.15)
    assert espeak().spoken_speed(1.5) == 1.5
    assert espeak().spoken_speed(4) == pytest.approx(450 / 175)
    assert espeak().spoken_speed(0.25) == pytest.approx(80 / 175)


def test_text_is_text_whatever_is_in_it() -> None:
    plain = espeak().say("one two", "en-us")
    assert seconds(espeak().say("one\0two", "en-us")) == pytest.approx(seconds(plain), rel=0.05)
    # No markup: the tag is read out.
    assert seconds(espeak().say("<break time='9s'/> one two", "en-us")) > seconds(plain)


def test_a_sentence_that_nobody_wants_ends_early() -> None:
    whole = espeak().say(SENTENCE * 20, "en-us")
    assert seconds(espeak().say(SENTENCE * 20, "en-us", 1.0, lambda: False)) < seconds(whole) / 10
    assert seconds(espeak().say(SENTENCE, "en-us")) > 1.5


@pytest.mark.asyncio
async def test_callers_take_turns_sentence_by_sentence() -> None:
    speaker, order = LocalSpeaker(espeak()), []

    async def listen(name: str) -> None:
        async with aclosing(speaker.speak(["One."] * 5, "en-us", 1.0)) as spoken:
            async for _ in spoken:
                order.append(name)

    await asyncio.gather(listen("a"), listen("b"))
    await speaker.close()
    assert sorted(order[:2]) == ["a", "b"]
    assert sorted(order[2:4]) == ["a", "b"]
    assert len(order) == 10


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Espeak(Library("/nowhere/libespeak-ng.so"))
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(ConfigError, match="pip install espeakng-loader"):
        module.find_library()


def test_data_that_is_missing_is_named() -> None:
    """In a process of its own: the library has one state."""
    script = """
from serving.models.espeak import Espeak, Library, find_library
Espeak(Library(find_library().path, "/nowhere"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert "ConfigError: espeak-ng does not find its data in /nowhere" in done.stderr
