"""Sound as it comes, into files that are heard as they come: MP3, Opus, AAC, FLAC, WAV or bare
samples.

One encoder runs through all of it, so where one piece ends and the next begins nothing is heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import IO, Self, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.filter import Graph

from serving.media.errors import EncodeError
from serving.plan.speech import AudioFormat

RATE_HZ = 24_000
"""Of every format, one channel: what players of OpenAI's ``pcm`` take it for."""
CHANNELS = 1
SAMPLE_BYTES = 2
LOUDNESS_MIN, LOUDNESS_MAX = -70.0, -5.0
"""LUFS, as EBU R128 measures; what FFmpeg's ``loudnorm`` aims at."""
PEAK_DBTP = -1.5
TEMPO_MIN, TEMPO_MAX = 0.05, 20.0
_ATEMPO_MIN = 0.5
"""One such filter goes no slower; two in a row do."""


@dataclass(frozen=True)
class Codec:
    """How a format is made. ``media_type`` goes with the bytes; PCM has no container. ``streamed``:
    options for what is heard before its end is known."""

    media_type: str
    container: str = ""
    name: str = ""
    bit_rate: int | None = None
    streamed: Mapping[str, str] | None = None


CODECS: Mapping[AudioFormat, Codec] = {
    # No header with the length and the encoder's delay: it can only be written at the end.
    AudioFormat.MP3: Codec(
        "audio/mpeg", "mp3", "libmp3lame", 96_000, {"write_xing": "0", "id3v2_version": "0"}
    ),
    # A page of Ogg is sent whole, and holds a second of sound unless told otherwise.
    AudioFormat.OPUS: Codec("audio/ogg", "ogg", "libopus", 48_000, {"page_duration": "100000"}),
    AudioFormat.AAC: Codec("audio/aac", "adts", "aac", 96_000),
    AudioFormat.FLAC: Codec("audio/flac", "flac", "flac"),
    AudioFormat.WAV: Codec("audio/wav", "wav", "pcm_s16le"),
    AudioFormat.PCM: Codec("audio/pcm"),
}


class AudioEncoder:
    """Takes 16-bit little-endian mono PCM of ``source_rate_hz`` in pieces, and gives bytes of the
    format as soon as there are any: :data:`RATE_HZ`, one channel.

    ``tempo`` makes it faster (above 1) or slower and keeps its pitch. ``loudness_lufs`` brings it
    to that integrated loudness (EBU R128), with peaks below :data:`PEAK_DBTP`; this looks three
    seconds ahead. ``into`` is a file to write to in place of giving bytes: then the sound's length
    stands at its beginning, where a format has it. ``seconds`` is how much sound was made so far.
    The bytes do not depend on how the input was cut into pieces. Not to be used by several threads
    at once.

    Raises :class:`EncodeError` for values out of range and for input that is no such PCM.
    """

    def __init__(
        self,
        audio_format: AudioFormat,
        source_rate_hz: int,
        *,
        tempo: float = 1.0,
        loudness_lufs: float | None = None,
        into: IO[bytes] | None = None,
    ) -> None:
        self.seconds = 0.0
        self._codec = CODECS[audio_format]
        self._given = 0
        self._source_rate_hz = source_rate_hz
        self._odd = b""
        self._made = _Made()
        self._into = into
        self._container: OutputContainer | None = None
        self._stream: AudioStream | None = None
        try:
            self._graph = _graph(source_rate_hz, _filters(tempo, loudness_lufs))
            if self._codec.container:
                self._open()
        except av.FFmpegError as error:
            raise EncodeError(f"cannot start {audio_format} audio: {error}") from error

    def encode(self, pcm: bytes) -> bytes:
        """What there is of it after this piece; it may be nothing yet."""
        whole = self._odd + pcm
        cut = len(whole) - len(whole) % SAMPLE_BYTES
        self._odd = whole[cut:]
        samples = np.frombuffer(whole[:cut], "<i2").astype(np.int16)
        if len(samples):
            frame = AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
            frame.sample_rate = self._source_rate_hz
            frame.time_base = Fraction(1, self._source_rate_hz)
            frame.pts = self._given
            self._given += len(samples)
            self._push(frame)
        return self._made.take()

    def finish(self) -> bytes:
        """The rest of it."""
        if self._odd:
            raise EncodeError("the audio ends in the middle of a sample")
        if self._given:
            self._push(None)
        try:
            if self._stream is not None and self._container is not None:
                self._container.mux(self._stream.encode(None))
                self._container.close()
        except av.FFmpegError as error:
            raise EncodeError(f"cannot end the audio: {error}") from error
        return self._made.take()

    def close(self) -> None:
        """Let go of it, wherever it is. Safe to repeat."""
        container, self._container, self._stream = self._container, None, None
        if container is not None:
            container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        # The muxer's version string is no part of the sound.
        options = {"fflags": "+bitexact"}
        if self._into is None:
            options |= {"flush_packets": "1", **(self._codec.streamed or {})}
        self._container = av.open(
            self._into or self._made, "w", format=self._codec.container, options=options
        )
        stream = cast(AudioStream, self._container.add_stream(self._codec.name, rate=RATE_HZ))
        stream.layout = "mono"
        if self._codec.bit_rate:
            stream.bit_rate = self._codec.bit_rate
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        self._stream = stream

    def _push(self, frame: AudioFrame | None) -> None:
        try:
            self._graph.push(frame)
            for made in self._pulled():
                self.seconds += made.samples / RATE_HZ
                if self._stream is not None and self._container is not None:
                    self._container.mux(self._stream.encode(made))
                else:
                    (self._into or self._made).write(made.to_ndarray().astype("<i2").tobytes())
        except av.FFmpegError as error:
            raise EncodeError(f"cannot encode the audio: {error}") from error

    def _pulled(self) -> Iterator[AudioFrame]:
        while True:
            try:
                yield cast(AudioFrame, self._graph.pull())
            except (av.BlockingIOError, av.EOFError):
                return


class _Made:
    """What a muxer writes, for whoever takes it. It cannot go back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _filters(tempo: float, loudness_lufs: float | None) -> list[tuple[str, str]]:
    """Names and arguments of FFmpeg's filters, in order."""
    if not TEMPO_MIN <= tempo <= TEMPO_MAX:
        raise EncodeError(f"a tempo of {tempo:g} is outside {TEMPO_MIN:g} to {TEMPO_MAX:g}")
    filters = []
    while tempo < _ATEMPO_MIN:
        filters.append(("atempo", str(_ATEMPO_MIN)))
        tempo /= _ATEMPO_MIN
    if tempo != 1:
        filters.append(("atempo", f"{tempo:.9f}"))
    if loudness_lufs is not None:
        if not LOUDNESS_MIN <= loudness_lufs <= LOUDNESS_MAX:
            raise EncodeError(
                f"a loudness of {loudness_lufs:g} LUFS is outside {LOUDNESS_MIN:g} to "
                f"{LOUDNESS_MAX:g}"
            )
        filters.append(("loudnorm", f"I={loudness_lufs}:TP={PEAK_DBTP}:LRA=7"))
    return [
        *filters,
        ("aresample", str(RATE_HZ)),
        ("aformat", f"sample_fmts=s16:sample_rates={RATE_HZ}:channel_layouts=mono"),
    ]


def _graph(source_rate_hz: int, filters: list[tuple[str, str]]) -> Graph:
    if not 1_000 <= source_rate_hz <= 384_000:
        raise EncodeError(f"{source_rate_hz} Hz is not a sample rate of sound")
    graph = Graph()
    last = graph.add_abuffer(
        sample_rate=source_rate_hz,
        format="s16",
        layout="mono",
        time_base=Fraction(1, source_rate_hz),
    )
    for name, arguments in (*filters, ("abuffersink", "")):
        each = graph.add(name, arguments) if arguments else graph.add(name)
        last.link_to(each)
        last = each
    graph.configure()
    return graph
