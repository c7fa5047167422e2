"""An MP4 is written whole, plays everywhere, keeps its colours, and is the same every time."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from serving.media import EncodeError, Frames, VideoInfo, VideoWriter

FPS = 24


def moving_pattern(frames: int, *, width: int = 320, height: int = 240) -> Frames:
    """Gradients that drift at different speeds: motion for the encoder to work on."""
    i, y, x = np.ogrid[0:frames, 0:height, 0:width]
    channels = (x + 3 * i + 0 * y, y + 2 * i + 0 * x, x + y + i)
    return np.stack([channel % 256 for channel in channels], axis=-1).astype(np.uint8)


def flat(rgb: tuple[int, int, int], frames: int, *, width: int, height: int) -> Frames:
    return np.full((frames, height, width, 3), rgb, np.uint8)


def encode(path: Path, *chunks: Frames, width: int = 320, height: int = 240) -> VideoInfo:
    with VideoWriter(path, width=width, height=height, fps=FPS) as writer:
        for chunk in chunks:
            writer.write(chunk)
    return writer.close()


def top_level_boxes(path: Path) -> list[str]:
    data, boxes, offset = path.read_bytes(), [], 0
    while offset < len(data):
        size, name = struct.unpack_from(">I4s", data, offset)
        boxes.append(name.decode())
        offset += size
    return boxes


def test_a_clip_has_the_codec_size_and_duration_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"

    info = encode(path, moving_pattern(36))

    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert video.codec_context.name == "h264"
        assert video.codec_context.profile == "High"
        assert video.codec_context.pix_fmt == "yuv420p"
        assert video.average_rate == FPS
        assert video.duration is not None
        assert video.time_base is not None
        assert float(video.duration * video.time_base) == pytest.approx(36 / FPS)
        shapes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert shapes == [(320, 240)] * 36
    assert info == VideoInfo(
        frames=36, duration_s=1.5, width=320, height=240, size_bytes=path.stat().st_size
    )


def test_the_index_stands_before_the_pictures(tmp_path: Path) -> None:
    encode(tmp_path / "clip.mp4", moving_pattern(10))

    boxes = top_level_boxes(tmp_path / "clip.mp4")

    assert boxes.index("moov") < boxes.index("mdat")


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [
        # Y, Cb and Cr by the BT.709 matrix in limited range, worked out by hand.
        ((255, 0, 0), (63, 102, 240)),
        ((0, 255, 0), (173, 42, 26)),
        ((0, 0, 255), (32, 240, 118)),
        ((128, 128, 128), (126, 128, 128)),
    ],
)
def test_colours_do_not_shift(
    tmp_path: Path, rgb: tuple[int, int, int], yuv: tuple[int, int, int]
) -> None:
    encode(tmp_path / "clip.mp4", flat(rgb, 5, width=64, height=48), width=64, height=48)

    with av.open(str(tmp_path / "clip.mp4")) as container:
        frame = next(container.decode(video=0))
        planes = frame.to_ndarray()
        shown = frame.to_ndarray(format="rgb24")
    y, cb, cr = planes[:48].mean(), planes[48:60].mean(), planes[60:].mean()
    assert (y, cb, cr) == pytest.approx(yuv, abs=1.5)
    assert shown.reshape(-1, 3).mean(axis=0) == pytest.approx(rgb, abs=3)
    bt709, limited = 1, 1  # code points of ITU-T H.273, and FFmpeg's number for 16..235
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (bt709, bt709, bt709)
    assert frame.color_range == limited


def test_a_keyframe_comes_at_least_every_two_seconds(tmp_path: Path) -> None:
    encode(tmp_path / "clip.mp4", moving_pattern(5 * FPS, width=64, height=48))

    with av.open(str(tmp_path / "clip.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    assert times[0] == 0
    assert max(b - a for a, b in zip(times, [*times[1:], 5.0], strict=True)) <= 2


def test_frames_of_another_size_are_scaled_to_the_output(tmp_path: Path) -> None:
    left, right = (200, 40, 40), (40, 40, 200)
    frames = np.concatenate(
        [flat(left, 4, width=40, height=30), flat(right, 4, width=40, height=30)], axis=2
    )

    encode(tmp_path / "clip.mp4", frames, width=320, height=120)

    with av.open(str(tmp_path / "clip.mp4")) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert shown.shape == (120, 320, 3)
    assert shown[60, 20] == pytest.approx(left, abs=4)
    assert shown[60, 300] == pytest.approx(right, abs=4)


def test_how_the_frames_are_cut_into_chunks_does_not_show(tmp_path: Path) -> None:
    frames = moving_pattern(20)

    encode(tmp_path / "whole.mp4", frames)
    encode(tmp_path / "cut.mp4", frames[:1], frames[1:1], frames[1:12], frames[12:])

    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "cut.mp4").read_bytes()


SAME_CLIP_ELSEWHERE = """
import os, sys
from pathlib import Path
if sys.argv[2] == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from tests.unit.test_video_writer import encode, moving_pattern
encode(Path(sys.argv[1]), moving_pattern(40))
"""


def test_the_bytes_depend_on_neither_the_cores_nor_stale_memory(tmp_path: Path) -> None:
    encode(tmp_path / "here.mp4", moving_pattern(40))
    here = (tmp_path / "here.mp4").read_bytes()

    # glibc fills fresh memory with this byte: an encoder that reads what it never wrote shows it.
    for cores, stale_byte in (("one core", "90"), ("all cores", "165")):
        path = tmp_path / f"{cores}.mp4"
        subprocess.run(
            [sys.executable, "-c", SAME_CLIP_ELSEWHERE, str(path), cores],
            env={**os.environ, "MALLOC_PERTURB_": stale_byte, "PYTHONPATH": os.getcwd()},
            check=True,
            timeout=60,
        )
        assert path.read_bytes() == here, f"differs on {cores} with memory of {stale_byte}"


def test_nothing_stands_at_the_path_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, width=64, height=48, fps=FPS)
    writer.write(moving_pattern(30, width=64, height=48))
    assert not path.exists()

    writer.close()

    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_an_exception_leaves_no_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"what was there before")

    def encode_until_cancelled() -> None:
        with VideoWriter(path, width=64, height=48, fps=FPS) as writer:
            writer.write(moving_pattern(30, width=64, height=48))
            raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        encode_until_cancelled()

    assert os.listdir(tmp_path) == ["clip.mp4"]
    assert path.read_bytes() == b"what was there before"


def test_a_clip_of_no_frames_is_an_error(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", width=64, height=48, fps=FPS)

    with pytest.raises(EncodeError, match="at least one frame"):
        writer.close()

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("width", "height", "fps", "message"),
    [
        (63, 48, 24, "63x48 needs even sides"),
        (64, 47, 24, "64x47 needs even sides"),
        (0, 48, 24, "outside"),
        (64, 8194, 24, "outside"),
        (64, 48, 0, "outside"),
        (64, 48, 241, "outside"),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(
    tmp_path: Path, width: int, height: int, fps: int, message: str
) -> None:
    with pytest.raises(EncodeError, match=message):
        VideoWriter(tmp_path / "clip.mp4", width=width, height=height, fps=fps)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 48, 64, 3), np.float32),
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((2, 3, 48, 64), np.uint8),
    ],
    ids=["float", "one frame", "channels first"],
)
def test_frames_of_another_form_are_refused(tmp_path: Path, frames: Frames) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", width=64, height=48, fps=FPS)

    with pytest.raises(EncodeError, match=r"expected uint8 \[F, H, W, 3\]"):
        writer.write(frames)

    assert os.listdir(tmp_path) == []


def test_a_finished_writer_takes_no_more_frames(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", width=64, height=48, fps=FPS)
    writer.write(moving_pattern(2, width=64, height=48))
    info = writer.close()

    with pytest.raises(EncodeError, match="already closed"):
        writer.write(moving_pattern(1, width=64, height=48))
    assert writer.close() == info
    assert (tmp_path / "clip.mp4").stat().st_size == info.size_bytes


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="cannot start a video"):
        VideoWriter(tmp_path / "missing" / "clip.mp4", width=64, height=48, fps=FPS)
