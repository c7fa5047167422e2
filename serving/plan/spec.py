"""What a job is asked to make: a clip, or a text that is spoken."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag, TypeAdapter

from serving.plan.clip import ClipSpec
from serving.plan.speech_spec import SpeechSpec

Spec: TypeAlias = ClipSpec | SpeechSpec
"""Each has the ``model`` it is for, its number of ``steps``, and the ``shape`` and the ``rows`` by
which the queue knows what may run side by side."""


def _kind(value: Any) -> str:
    """A clip's has no ``kind``: they were there before there was another."""
    return str(value.get("kind", "clip")) if isinstance(value, dict) else "clip"


_SPEC: TypeAdapter[Spec] = TypeAdapter(
    Annotated[
        Annotated[ClipSpec, Tag("clip")] | Annotated[SpeechSpec, Tag("speech")],
        Discriminator(_kind),
    ],
    config={"hide_input_in_errors": True},
)


def spec_of_json(text: str) -> Spec:
    """What ``model_dump_json`` of either wrote; ValueError if it is neither."""
    return _SPEC.validate_json(text)
