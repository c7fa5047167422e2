"""What a frontend does with speech, with whichever OpenAI SDK is on the path. Prints ``ok``."""

from __future__ import annotations

import wave
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import openai

SENTENCE = "The quick brown fox jumps over the lazy dog."
Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
BEGINS: dict[Format, bytes] = {
    "mp3": b"\xff\xf3",
    "opus": b"OggS",
    "aac": b"\xff\xf1",
    "flac": b"fLaC",
    "wav": b"RIFF",
    "pcm": b"",
}


def main() -> None:
    client = openai.OpenAI(max_retries=0)
    with TemporaryDirectory() as folder:
        for name, begins in BEGINS.items():
            whole = client.audio.speech.create(
                model="tts-1", voice="alloy", input=SENTENCE, response_format=name
            ).read()
            assert whole.startswith(begins), name
            file = Path(folder, f"speech.{name}")
            with client.audio.speech.with_streaming_response.create(
                model="gpt-4o-mini-tts",
                voice="nova",
                input=SENTENCE,
                response_format=name,
                speed=1.5,
            ) as answer:
                answer.stream_to_file(file)
            faster = file.read_bytes()
            assert faster.startswith(begins), name
            assert 1000 < len(faster) < len(whole), name
        # No length is known when it begins, so the reader is told to go on to the end.
        with wave.open(str(Path(folder, "speech.wav"))) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (
                24_000,
                1,
                2,
            )
    for voice, text in (("nobody", SENTENCE), ("alloy", ""), ("alloy", "x" * 100_000)):
        refused = ""
        try:
            client.audio.speech.create(model="tts-1", voice=voice, input=text)
        except openai.BadRequestError as error:
            refused = error.code or ""
        assert refused in ("voice_not_found", "invalid_value", "string_too_long"), refused
    print("ok")


if __name__ == "__main__":
    main()
