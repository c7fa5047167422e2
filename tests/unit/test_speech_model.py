"""Models that speak, as the catalog has them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.settings import StackSettings
from deployments.speech import those_that_speak
from serving.models.espeak import espeak
from serving.plan.catalog import load_catalog
from serving.plan.classes import ServiceClass
from serving.plan.errors import ConfigError, InvalidRequest
from serving.plan.speech_model import SpeechCatalog, SpeechModel, load_speech

OURS = Path(str(files("deployments") / "catalog"))
ENTRY: dict[str, Any] = {
    "id": "nora",
    "family": "triton",
    "description": "A voice.",
    "speech": {"voice": "nora"},
    "triton": {"url": "triton:8001"},
    "cost": {"s_per_kchar": 2.0},
}
CHECKPOINT: dict[str, Any] = {
    "weights": {"hub": "someone/nora"},
    "sample_rate_hz": 16_000,
    "voices": {"nora": {"language": "en"}},
}
NEURAL: dict[str, Any] = {"family": "vits", "triton": None, "checkpoint": CHECKPOINT}


def written(folder: Path, **changes: Any) -> Path:
    entry = {name: value for name, value in {**ENTRY, **changes}.items() if value is not None}
    (folder / "entry.yaml").write_text(yaml.safe_dump(entry))
    return folder


def test_ours_speaks_with_voices_that_there_are() -> None:
    model = StackSettings().speech_catalog().resolve("tts-1")
    have = {voice.id for voice in espeak().voices}
    assert set(model.speech.voices.values()) <= have
    assert model.speech.voice in model.speech.voices
    assert {"alloy", "nova", "onyx", "verse", "cedar"} <= set(model.speech.voices)


def test_files_are_of_one_kind_or_the_other() -> None:
    speaking, showing = load_speech([OURS]).models, load_catalog([OURS]).models
    assert "espeak" in speaking
    assert "demo-wan" in showing
    assert not speaking.keys() & showing.keys()
    assert len(speaking) + len(showing) == len(list(OURS.glob("*.yaml")))


def test_what_it_takes_and_costs_follows_the_characters(tmp_path: Path) -> None:
    model = load_speech([written(tmp_path, price={"per_kchar": 300, "minimum": 5})]).models["nora"]
    assert model.device_ms(1000) == 2010
    assert (model.milli_credits(1), model.milli_credits(1000), model.milli_credits(1001)) == (
        5,
        300,
        301,
    )
    assert model.classes[ServiceClass.BURST].share == 0.6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"triton": None}, "family triton needs a 'triton' section"),
        ({"family": "piper"}, "family: Input should be 'espeak', 'triton', 'vits' or 'bark'"),
        ({"family": "vits"}, "families vits, bark need a 'checkpoint'"),
        ({"checkpoint": CHECKPOINT}, "and no other has one"),
        ({**NEURAL, "checkpoint": {**CHECKPOINT, "voices": {}}}, "checkpoint.voices: Dict"),
        ({**NEURAL, "speech": {"voice": "otto"}}, "the voice 'otto' is none of checkpoint.voices"),
        (
            {**NEURAL, "speech": {"voice": "nora", "voices": {"alloy": "otto"}}},
            "the voice 'alloy' is none of checkpoint.voices",
        ),
        (
            {**NEURAL, "speech": {"voice": "nora", "instructions": True}},
            "the family vits cannot be told how to speak",
        ),
        ({**NEURAL, "triton": {"url": "a:1", "model": "b"}}, "triton.model is not to be said"),
        ({"speech": {}}, "speech.voice: Field required"),
        ({"speech": {"voice": "a", "pitch": 1}}, "speech.pitch: Extra inputs are not permitted"),
        ({"speech": {"voice": "a", "speed": {"default": 9, "min": 1, "max": 2}}}, "not within"),
        ({"cost": None}, "cost: Field required"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_speech([written(tmp_path, **changes)])
    assert "entry.yaml" in raised.value.message
    assert said in raised.value.message


def test_a_checkpoint_speaks_at_a_server_as_the_model_of_its_id(tmp_path: Path) -> None:
    model = load_speech([written(tmp_path, **NEURAL)]).models["nora"]
    assert (model.seat.url, model.seat.model, model.seat.sample_rate_hz) == (None, "nora", 16_000)
    assert (model.seat.speed.min, model.seat.speed.max) == (0.5, 2.0)
    at = {**NEURAL, "triton": {"url": "gpu:8001", "timeout_s": 50}}
    model = load_speech([written(tmp_path, **at)]).models["nora"]
    assert (model.seat.url, model.seat.model, model.seat.timeout_s) == ("gpu:8001", "nora", 50)
    assert [voice.name for voice in model.own_voices] == ["nora"]


def test_names_are_of_one_model_each() -> None:
    one = SpeechModel.model_validate(ENTRY)
    other = SpeechModel.model_validate({**ENTRY, "id": "other", "aliases": ["nora"]})
    with pytest.raises(ConfigError, match="the name 'nora' is declared by both"):
        SpeechCatalog([one, other])
    catalog = SpeechCatalog([one])
    assert "nora" in catalog
    with pytest.raises(InvalidRequest, match="Those that do: nora") as raised:
        catalog.resolve("sora-2")
    assert raised.value.param == "model"
    with pytest.raises(ConfigError, match="no model 'x' that speaks"):
        catalog.only(["x"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own models
def test_what_speaks_has_replicas_of_its_own_that_are_light() -> None:
    from deployments.application import serve_config

    def pools(settings: StackSettings) -> dict[str, dict[str, Any]]:
        deployments = serve_config(settings)["applications"][0]["deployments"]
        return {each["name"]: each for each in deployments}

    pool = pools(StackSettings())["espeak"]
    assert (pool["num_replicas"], pool["ray_actor_options"]["num_cpus"]) == (1, 0.1)
    assert set(pools(StackSettings(speech=[]))) == {"ingress", "demo-wan"}


def test_what_cannot_speak_on_a_machine_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> None:
        raise ConfigError("there is no espeak-ng")

    assert those_that_speak(StackSettings()) == ["espeak"]
    monkeypatch.setattr("serving.models.espeak.find_library", nowhere)
    assert those_that_speak(StackSettings()) == []
    assert those_that_speak(StackSettings(triton_url="triton:8001")) == ["espeak"]
