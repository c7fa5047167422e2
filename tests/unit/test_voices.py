"""Neural voices, by the code that loads released ones, on tiny checkpoints with random weights."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import aclosing
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.models.local_speaker import LocalSpeaker
from serving.models.tiny_voices import tiny_bark, tiny_vits
from serving.models.voices import PAUSE_S, load_voices
from serving.plan.errors import ConfigError, InvalidRequest, ModelFailed
from serving.plan.speech import SpeechEngine, Voice
from serving.plan.speech_model import SPOKEN, SpeechModel, load_speech
from tests.tools import ROOT
from tests.voices import bark, tiny_models, vits

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, SpeechModel]:
    return tiny_models(tmp_path_factory.mktemp("voices"))


@pytest.fixture(scope="module")
def engines(models: Mapping[str, SpeechModel]) -> Mapping[str, SpeechEngine]:
    return {name: load_voices(model, Path()) for name, model in models.items()}


def seconds(engine: SpeechEngine, pcm: bytes) -> float:
    return len(pcm) / 2 / engine.sample_rate_hz


def refused(entry: dict[str, Any], models_dir: Path = Path()) -> str:
    with pytest.raises(ConfigError) as raised:
        load_voices(SpeechModel.model_validate(entry), models_dir)
    return raised.value.message


def test_each_says_a_sentence_and_a_pause(engines: Mapping[str, SpeechEngine]) -> None:
    rates = {name: engine.sample_rate_hz for name, engine in engines.items()}
    assert rates == {"tiny-vits": 16_000, "tiny-speakers": 16_000, "tiny-bark": 24_000}
    for name, engine in engines.items():
        samples = np.frombuffer(engine.say(TEXT, engine.voices[0].id), "<i2")
        pause = round(PAUSE_S * rates[name])
        assert np.abs(samples[:-pause].astype(int)).max() > 300, name
        assert not samples[-pause:].any()
        assert 0.4 < seconds(engine, samples.tobytes()) < 60


def test_the_same_request_gives_the_same_bits(
    models: Mapping[str, SpeechModel], engines: Mapping[str, SpeechEngine]
) -> None:
    """Whatever was said in between and drawn elsewhere, and in a process that just began."""
    for name, engine in engines.items():
        voice = engine.voices[0].id
        first = engine.say(TEXT, voice)
        torch.manual_seed(7)
        engine.say("Something else.", voice)
        drawn = torch.rand(1)
        assert engine.say(TEXT, voice) == first, name
        assert load_voices(models[name], Path()).say(TEXT, voice) == first
        torch.manual_seed(7)
        assert torch.rand(1) == drawn, "our noise leaves everybody else's alone"


def test_voices_are_those_of_the_entry_and_sound_otherwise(
    engines: Mapping[str, SpeechEngine],
) -> None:
    assert list(engines["tiny-vits"].voices) == [Voice("eng", "English", "en", "neutral")]
    assert list(engines["tiny-bark"].voices) == [
        Voice("v2/de_speaker_0", "v2/de_speaker_0", "de", "female"),
        Voice("v2/en_speaker_6", "v2/en_speaker_6", "en", "neutral"),
    ]
    for name, count in (("tiny-speakers", 3), ("tiny-bark", 2)):
        said = {engines[name].say(TEXT, voice.id) for voice in engines[name].voices}
        assert len(said) == count, name


def test_a_voice_there_is_not_is_refused(engines: Mapping[str, SpeechEngine]) -> None:
    for engine in engines.values():
        for voice in ("", "3", "v2/en_speaker_7", "../../etc/passwd"):
            with pytest.raises(InvalidRequest, match="There is no voice") as raised:
                engine.say(TEXT, voice)
            assert raised.value.param == "voice"


def test_speed_is_how_fast_it_speaks(engines: Mapping[str, SpeechEngine]) -> None:
    engine = engines["tiny-vits"]
    took = {
        speed: seconds(engine, engine.say(TEXT, "eng", speed)) - PAUSE_S for speed in (0.5, 1, 2)
    }
    # Of whole frames for each letter, so not quite twice and half.
    assert 1.5 < took[0.5] / took[1] <= 2
    assert 0.5 <= took[2] / took[1] < 0.75
    assert [engine.spoken_speed(speed) for speed in (0.25, 1.5, 4)] == [0.5, 1.5, 2.0]
    assert engine.say(TEXT, "eng", 0.25) == engine.say(TEXT, "eng", 0.5)
    # The rest of it, or all, is time-stretching.
    assert [engines["tiny-bark"].spoken_speed(speed) for speed in (0.25, 4)] == [1.0, 1.0]


def test_what_it_cannot_read_is_a_pause(engines: Mapping[str, SpeechEngine]) -> None:
    for text in ("1234", "你好。", "..."):
        pcm = engines["tiny-vits"].say(text, "eng")
        assert (len(pcm), pcm.strip(b"\0")) == (2 * round(PAUSE_S * 16_000), b""), text
    longest = engines["tiny-vits"].say("hello " * 66, "eng")
    assert len(longest) > len(engines["tiny-vits"].say("hello", "eng"))
    assert seconds(engines["tiny-bark"], engines["tiny-bark"].say("x" * 400, "v2/en_speaker_6"))


def test_a_sentence_that_nobody_wants_is_not_begun(engines: Mapping[str, SpeechEngine]) -> None:
    assert engines["tiny-vits"].say(TEXT, "eng", 1.0, lambda: False) == b""


@pytest.mark.asyncio
async def test_a_text_is_heard_sentence_by_sentence_and_left_between_two(
    engines: Mapping[str, SpeechEngine],
) -> None:
    engine = engines["tiny-vits"]
    said: list[str] = []

    class Heard:
        """Notes what is said."""

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def say(self, text: str, *how: Any) -> bytes:
            pcm = engine.say(text, *how)
            if pcm:
                said.append(text)
            return pcm

    speaker = LocalSpeaker(Heard())
    try:
        sentences = ["one", "two", "three"]
        heard = [pcm async for pcm in speaker.speak(sentences, "eng", 1.0)]
        assert heard == [engine.say(each, "eng") for each in sentences]
        assert said == sentences
        said.clear()
        async with aclosing(speaker.speak(["one"] * 100, "eng", 1.0)) as spoken:
            await anext(spoken)
        await asyncio.sleep(0.1)
        assert said == ["one"]
        with pytest.raises(InvalidRequest, match="cannot be told"):
            await anext(speaker.speak(["one"], "eng", 1.0, "Whisper."))
    finally:
        await speaker.close()


def test_weights_as_they_were_released_are_read(
    models: Mapping[str, SpeechModel], engines: Mapping[str, SpeechEngine], tmp_path: Path
) -> None:
    """Normalised weights had other names when MMS was released."""
    checkpoint = models["tiny-vits"].checkpoint
    assert checkpoint is not None
    released = shutil.copytree(Path(checkpoint.weights.model_dump()["path"]), tmp_path / "old")
    names = {"original0": "weight_g", "original1": "weight_v"}
    weights = {}
    for name, tensor in load_file(released / "model.safetensors").items():
        base, _, last = name.rpartition(".parametrizations.weight.")
        weights[f"{base}.{names[last]}" if base else name] = tensor
    assert any(name.endswith("weight_g") for name in weights)
    save_file(weights, released / "model.safetensors", metadata={"format": "pt"})
    engine = load_voices(SpeechModel.model_validate(vits(released)), Path())
    assert engine.say(TEXT, "eng") == engines["tiny-vits"].say(TEXT, "eng")


def test_another_precision_speaks_too(models: Mapping[str, SpeechModel]) -> None:
    for model in models.values():
        assert model.checkpoint is not None
        half = model.checkpoint.model_copy(update={"dtype": "bfloat16"})
        engine = load_voices(model.model_copy(update={"checkpoint": half}), Path())
        assert seconds(engine, engine.say(TEXT, engine.voices[0].id)) > 0.4


def test_a_checkpoint_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(vits(tmp_path / "nothing"))
    assert "model 'tiny-vits': there is no checkpoint in" in said
    assert str(tmp_path / "nothing") in said
    weights = {"path": "{models_dir}/mms"}
    assert str(tmp_path / "models" / "mms") in refused(
        vits(tmp_path, weights=weights), tmp_path / "models"
    )
    # No hub is asked: its cache has nothing.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = {"hub": "facebook/mms-tts-zzz", "revision": "0" * 40}
    assert "model 'tiny-vits': cannot load facebook/mms-tts-zzz" in refused(
        vits(tmp_path, weights=hub)
    )


def test_a_checkpoint_of_another_kind_is_named(
    models: Mapping[str, SpeechModel], tmp_path: Path
) -> None:
    folder = tiny_bark(tmp_path)
    said = refused(vits(folder))
    assert f"cannot load {folder}: it holds a model of the kind bark, and not vits" in said
    assert "not bark" in refused(bark(tiny_vits(tmp_path / "vits")))


def test_a_checkpoint_with_a_part_missing_is_named(tmp_path: Path) -> None:
    folder = tiny_vits(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.conv_post.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "it lacks 1 weights, such as decoder.conv_post.weight" in refused(vits(folder))
    os.truncate(folder / "model.safetensors", 1000)
    assert f"cannot load {folder}" in refused(vits(folder))
    (folder / "vocab.json").unlink()
    assert f"cannot load {folder}" in refused(vits(folder))


def test_what_the_catalog_says_is_held_to_the_checkpoint(tmp_path: Path) -> None:
    folder = tiny_vits(tmp_path / "vits")
    assert "sample_rate_hz is 22050 in the catalog and 16000 in the checkpoint" in refused(
        vits(folder, sample_rate_hz=22_050)
    )
    two = {"a": {"language": "en"}, "b": {"language": "en"}}
    assert "it has one speaker, and the catalog names 2 voices" in refused(vits(folder, voices=two))
    many = tiny_vits(tmp_path / "speakers", speakers=3)
    assert "it has no voice eng; its voices are its speakers' numbers, 0 to 2" in refused(
        vits(many)
    )
    voices = {"v2/en_speaker_7": {"language": "en"}}
    assert "it has no voice v2/en_speaker_7; it has v2/en_speaker_6" in refused(
        bark(tiny_bark(tmp_path / "bark"), voices=voices)
    )
    if not torch.cuda.is_available():
        assert "no CUDA GPU" in refused(vits(folder, device="cuda"))


@pytest.mark.parametrize(
    ("settings", "needs"),
    [({"phonemize": True}, "pip install phonemizer"), ({"is_uroman": True}, "pip install uroman")],
)
def test_what_a_checkpoint_needs_besides_is_said_at_the_start(
    tmp_path: Path, settings: dict[str, Any], needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether or not this machine has them.
    monkeypatch.setattr("serving.models.vits.is_phonemizer_available", lambda: False)
    monkeypatch.setattr("serving.models.vits.is_uroman_available", lambda: False)
    assert needs in refused(vits(tiny_vits(tmp_path, **settings)))


def test_what_is_no_sound_is_never_heard(tmp_path: Path) -> None:
    folder = tiny_vits(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["decoder.conv_post.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = load_voices(SpeechModel.model_validate(vits(folder)), Path())
    with pytest.raises(ModelFailed, match="cannot say this: it made something that is not"):
        engine.say(TEXT, "eng")


def test_an_ingress_speaks_with_one_and_knows_no_torch(
    models: Mapping[str, SpeechModel],
) -> None:
    """In a process of its own: this one knows torch."""
    script = f"""
import asyncio, sys
from contextlib import AsyncExitStack
from deployments.speech import open_speaker
from serving.plan.speech_model import SpeechModel
async def open_one():
    async with AsyncExitStack() as stack:
        model = SpeechModel.model_validate_json({models["tiny-bark"].model_dump_json()!r})
        speaker = open_speaker(model, "127.0.0.1:9", stack)
        print(speaker.sample_rate_hz, *[voice.id for voice in await speaker.voices()])
asyncio.run(open_one())
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.split("\n")[:2] == [
        "24000 v2/de_speaker_0 v2/en_speaker_6",
        "False False",
    ], done.stderr


def test_ours_in_the_catalog_say_what_they_are() -> None:
    shipped = load_speech([Path(str(files("deployments") / "catalog"))]).models.values()
    neural = {model.id: model for model in shipped if model.checkpoint is not None}
    assert {model.family for model in neural.values()} == set(SPOKEN)
    assert all(model.licence for model in neural.values())
    assert neural["mms-tts-eng"].licence == "CC-BY-NC-4.0"
    for name, model in neural.items():
        assert model.seat.model == name
        assert model.speech.voice in {voice.id for voice in model.own_voices}
