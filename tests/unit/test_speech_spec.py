"""What jobs are asked to make, as Redis keeps it."""

from __future__ import annotations

import json

import pytest

from serving.jobs import Kind, kind_of, new_id
from serving.jobs.job import Job, asked_text
from serving.plan.classes import ServiceTier
from serving.plan.spec import spec_of_json
from serving.plan.speech import AudioFormat
from serving.plan.speech_spec import SpeechSpec
from tests.jobs import spec

SPEECH = SpeechSpec(
    model="espeak",
    input="One. Two is longer. Three!",
    voice="en-us",
    asked_voice="alloy",
    speed=1.25,
    audio_format=AudioFormat.OPUS,
    loudness_lufs=-16,
)


def test_each_kind_is_read_as_what_it_was_written_as() -> None:
    for each in (spec(), SPEECH):
        assert spec_of_json(each.model_dump_json()) == each


def test_a_clip_from_before_there_was_another_kind_is_a_clip() -> None:
    assert "kind" not in json.loads(spec().model_dump_json())


@pytest.mark.parametrize("changes", [{"kind": "music"}, {"volume": 3}, {"input": None}])
def test_what_is_neither_brings_no_text_into_a_log(changes: dict[str, object]) -> None:
    text = json.dumps({**SPEECH.model_dump(mode="json"), **changes})
    with pytest.raises(ValueError, match="validation error") as raised:
        spec_of_json(text)
    assert "longer" not in str(raised.value)


def test_sentences_are_steps_and_weigh_by_their_letters() -> None:
    assert list(SPEECH.sentences) == ["One.", "Two is longer.", "Three!"]
    assert SPEECH.steps == 3
    assert [SPEECH.left_share(step) for step in range(4)] == [1, 20 / 24, 6 / 24, 0]


def test_ids_say_what_a_job_makes() -> None:
    assert [kind_of(new_id(kind)) for kind in Kind] == list(Kind)
    assert kind_of("anything") is Kind.VIDEO


@pytest.mark.parametrize("traceparent", ["", f"00-{'a' * 32}-{'b' * 16}-01"])
def test_a_job_that_speaks_is_no_clip(traceparent: str) -> None:
    raw = dict.fromkeys(("est_device_ms", "created_ms", "seq"), "1")
    raw |= {"id": "audio_1", "user": "ann", "pool": "espeak", "state": "queued"}
    raw |= {"class": "standard", "from": "allowance"}
    asked = asked_text("tts-1", ServiceTier.AUTO, SPEECH, traceparent)
    job = Job.from_hash({**raw, "asked": asked})
    assert (job.kind, job.speech, job.traceparent) == (Kind.AUDIO, SPEECH, traceparent)
    with pytest.raises(TypeError):
        _ = job.clip
