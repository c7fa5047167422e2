"""Sound in each format: what is heard is what was given, while it is still being given."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.media import CODECS, AudioEncoder, AudioFormat, EncodeError
from serving.media.audio import RATE_HZ

SOURCE_HZ = 22_050
FORMATS = list(AudioFormat)


def tone(hertz: float, seconds: float, level: float = 0.5) -> bytes:
    """A sine as 16-bit PCM of SOURCE_HZ."""
    at = np.arange(round(seconds * SOURCE_HZ)) / SOURCE_HZ
    return (level * 32767 * np.sin(2 * np.pi * hertz * at)).astype("<i2").tobytes()


def encoded(audio_format: AudioFormat, pcm: bytes, piece: int = 8192, **how: Any) -> bytes:
    with AudioEncoder(audio_format, SOURCE_HZ, **how) as encoder:
        pieces = [encoder.encode(pcm[at : at + piece]) for at in range(0, len(pcm), piece)]
        return b"".join([*pieces, encoder.finish()])


def decoded(audio_format: AudioFormat, data: bytes) -> tuple[np.ndarray, int]:
    """Samples from -1 to 1, and their rate, as a player that knows only the bytes has them."""
    if audio_format is AudioFormat.PCM:
        return np.frombuffer(data, "<i2") / 32768, RATE_HZ
    frames: list[np.ndarray] = []
    with av.open(io.BytesIO(data), "r") as container:
        (stream,) = container.streams.audio
        assert stream.codec_context.layout.nb_channels == 1
        to_float = av.AudioResampler("flt", "mono")
        rate = 0
        for frame in container.decode(stream):
            rate = frame.sample_rate
            frames += [each.to_ndarray()[0] for each in to_float.resample(frame)]
    return np.concatenate(frames), rate


def pitch(samples: np.ndarray, rate: int) -> float:
    """The strongest frequency in hertz, between the bins of a spectrum."""
    spectrum = np.log(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) + 1e-12)
    at = int(spectrum.argmax())
    low, top, high = spectrum[at - 1 : at + 2]
    return float((at + 0.5 * (low - high) / (low - 2 * top + high)) * rate / len(samples))


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_tone_of_440_hertz_is_one(audio_format: AudioFormat) -> None:
    samples, rate = decoded(audio_format, encoded(audio_format, tone(440, 2.0)))
    # Without the edges, where encoders begin and end.
    inner = samples[rate // 4 : -rate // 4]
    assert pitch(inner, rate) == pytest.approx(440, abs=0.1)
    assert np.sqrt((inner**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert len(samples) / rate == pytest.approx(2.0, abs=0.12)


@pytest.mark.parametrize("audio_format", FORMATS)
def test_bytes_come_long_before_the_end(audio_format: AudioFormat) -> None:
    with AudioEncoder(audio_format, SOURCE_HZ) as encoder:
        begun = encoder.encode(tone(440, 0.5))
        assert encoder.seconds == pytest.approx(0.5, abs=0.05)
        samples, rate = decoded(audio_format, begun)
        assert len(samples) / rate > 0.2


@pytest.mark.parametrize("audio_format", FORMATS)
def test_where_pieces_meet_nothing_is_heard(audio_format: AudioFormat) -> None:
    """A tone in pieces, as sentences come, gives the bytes of the tone as a whole."""
    pcm = tone(440, 1.5)
    whole = encoded(audio_format, pcm, len(pcm))
    assert encoded(audio_format, pcm, 2 * 4410) == whole
    assert encoded(audio_format, pcm, 2 * 12_345 + 1) == whole


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9000), max_size=12))
def test_it_does_not_matter_how_sound_is_cut(cuts: list[int]) -> None:
    pcm, at = tone(300, 0.8), 0
    with AudioEncoder(AudioFormat.MP3, SOURCE_HZ) as encoder:
        made = b""
        for cut in cuts:
            made += encoder.encode(pcm[at : at + cut])
            at += cut
        made += encoder.encode(pcm[at:]) + encoder.finish()
    assert made == encoded(AudioFormat.MP3, pcm, len(pcm))


@pytest.mark.parametrize("audio_format", FORMATS)
def test_nothing_at_all_is_no_error(audio_format: AudioFormat) -> None:
    assert isinstance(encoded(audio_format, b""), bytes)


@pytest.mark.parametrize("tempo", [0.25, 0.6, 2.0, 4.0])
def test_tempo_changes_how_long_it_is_and_not_how_high(tempo: float) -> None:
    samples, rate = decoded(AudioFormat.WAV, encoded(AudioFormat.WAV, tone(440, 2.0), tempo=tempo))
    assert len(samples) / rate == pytest.approx(2.0 / tempo, rel=0.05)
    inner = samples[len(samples) // 4 : -len(samples) // 4]
    assert pitch(inner, rate) == pytest.approx(440, abs=3)


def measured_lufs(samples: np.ndarray, rate: int) -> float:
    """Integrated loudness, as FFmpeg's own meter has it."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono")
    meter, sink = graph.add("ebur128", "metadata=1"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    frame = AudioFrame.from_ndarray(
        samples.astype(np.float32)[np.newaxis], format="flt", layout="mono"
    )
    frame.sample_rate = rate
    graph.push(frame)
    graph.push(None)
    loudness = -99.0
    while True:
        try:
            pulled = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return loudness
        loudness = float(pulled.metadata.get("lavfi.r128.I", loudness))


@pytest.mark.parametrize("target", [-16.0, -23.0])
@pytest.mark.parametrize("level", [0.02, 0.9])
def test_loudness_is_as_asked_whatever_it_was(level: float, target: float) -> None:
    rng = np.random.default_rng(0)
    # Bursts, as speech has them.
    at = np.arange(12 * SOURCE_HZ) / SOURCE_HZ
    noise = rng.normal(0, 0.3, len(at)) * (np.sin(2 * np.pi * 2 * at) > -0.5)
    pcm = (level * 32767 * np.clip(noise, -1, 1)).astype("<i2").tobytes()
    before, _ = decoded(AudioFormat.PCM, encoded(AudioFormat.PCM, pcm))
    assert abs(measured_lufs(before, RATE_HZ) - target) > 3
    after, _ = decoded(
        AudioFormat.PCM, encoded(AudioFormat.PCM, pcm, 2 * SOURCE_HZ, loudness_lufs=target)
    )
    assert measured_lufs(after, RATE_HZ) == pytest.approx(target, abs=1.5)
    assert np.abs(after).max() < 10 ** (-1.0 / 20)


@pytest.mark.parametrize("audio_format", list(AudioFormat))
def test_a_file_states_its_length_and_sounds_the_same(
    tmp_path: Path, audio_format: AudioFormat
) -> None:
    pcm, path = tone(440, 3.0), tmp_path / "sound"
    with path.open("wb") as file, AudioEncoder(audio_format, SOURCE_HZ, into=file) as encoder:
        assert encoder.encode(pcm) + encoder.finish() == b""
        made_s = encoder.seconds
    assert made_s == pytest.approx(3.0, abs=0.01)
    heard, rate = decoded(audio_format, path.read_bytes())
    assert len(heard) / rate == pytest.approx(3.0, abs=0.1)
    if audio_format in ("mp3", "flac", "wav", "opus"):
        with av.open(path) as container:
            assert container.duration is not None
            assert container.duration / 1e6 == pytest.approx(3.0, abs=0.1)


def test_what_cannot_be_is_refused() -> None:
    wrong: list[dict[str, Any]] = [{"tempo": 0.0}, {"tempo": 100.0}]
    wrong += [{"loudness_lufs": 3.0}, {"loudness_lufs": -99.0}]
    for how in wrong:
        with pytest.raises(EncodeError, match=r"is outside"):
            AudioEncoder(AudioFormat.MP3, SOURCE_HZ, **how)
    with pytest.raises(EncodeError, match="not a sample rate"):
        AudioEncoder(AudioFormat.MP3, 7)
    with AudioEncoder(AudioFormat.PCM, SOURCE_HZ) as encoder:
        encoder.encode(b"\x01")
        with pytest.raises(EncodeError, match="middle of a sample"):
            encoder.finish()


def test_it_may_be_let_go_anywhere() -> None:
    for audio_format in FORMATS:
        encoder = AudioEncoder(audio_format, SOURCE_HZ)
        encoder.encode(tone(440, 0.3))
        encoder.close()
        encoder.close()


def test_every_format_says_what_it_is() -> None:
    assert set(CODECS) == set(AudioFormat)
    assert all(re.fullmatch(r"audio/\w+", codec.media_type) for codec in CODECS.values())
