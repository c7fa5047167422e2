"""Frames in, one browser-playable MP4 out: H.264, 4:2:0, BT.709, index at the front."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import av
from av.container import OutputContainer
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from av.video.stream import VideoStream

from serving.media.errors import EncodeError
from serving.media.frames import SIDE_MAX_PX, Frame, Frames, check_frames

FPS_MAX = 240
KEYFRAME_INTERVAL_S = 2
CRF = 18

ENCODER_THREADS = 4
"""Fixed, because x264 cuts its work by thread count: another count gives other bytes."""

_X264_OPTIONS = {
    "preset": "veryfast",
    "crf": str(CRF),
    # High profile, 8-bit 4:2:0, is what every browser and phone decodes.
    "profile": "high",
    # Macroblock-tree reads memory it never wrote (x264 core 165, the build in PyAV 18.1): the same
    # frames gave up to eleven different files in 40 runs, and MALLOC_PERTURB_ alone changes them.
    # Its float arithmetic also differs between SSE and AVX. Without it the bytes held over both.
    # It costs 17% in size for 1.3 dB; crf 19 would give back the size (832x480, noisy pans).
    "mbtree": "0",
}

_MP4_OPTIONS = {
    "movflags": "+faststart",
    # Leaves out the muxer's version string. creation_time is only written when asked for.
    "fflags": "+bitexact",
}

# Without BITEXACT and ACCURATE_RND, swscale rounds differently with each CPU's vector unit.
_SCALING = (
    Interpolation.LANCZOS
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)

_BT709_MATRIX = 1  # code point of ITU-T H.273; PyAV has no name for a stream's matrix


@dataclass(frozen=True)
class VideoInfo:
    """What a finished file holds."""

    frames: int
    duration_s: float
    width: int
    height: int
    size_bytes: int


class VideoWriter:
    """Encodes frames, as they come, into an MP4 that appears at `path` whole or not at all.

    The same frames give the same bytes, in whatever chunks they came and however many cores the
    machine has, for one PyAV release. A keyframe comes at least every two seconds; `moov` stands
    before `mdat`, so playing can begin before the download ends.

    As a context manager it closes on the way out, or aborts if an exception passes through. Not
    safe for use by several threads at once.

    Raises `EncodeError` if width or height is odd or out of range, or fps is out of range.
    """

    def __init__(self, path: Path, *, width: int, height: int, fps: int) -> None:
        _check_output(width, height, fps)
        self._path = path
        self._width, self._height, self._fps = width, height, fps
        self._frames = 0
        self._info: VideoInfo | None = None
        self._aborted = False
        self._part = path.with_name(f".{path.name}.{uuid4().hex}.part")
        self._scaler = VideoReformatter()
        try:
            # PyAV opens the file with the first packet; a bad place should show before any work.
            self._part.touch()
            self._container: OutputContainer = av.open(
                str(self._part), "w", format="mp4", options=_MP4_OPTIONS
            )
            # An audio track is to be added here: MP4 fixes its streams with the first packet.
            self._stream = _add_video_stream(self._container, width, height, fps)
        except (av.FFmpegError, OSError) as error:
            with contextlib.suppress(OSError):
                self._part.unlink()
            raise EncodeError(f"cannot start a video at {path}: {error}") from error

    def write(self, frames: Frames) -> None:
        """Encode `frames`, uint8 [F, H, W, 3] RGB, scaled if H and W are not those of the output.

        Raises `EncodeError`, after which the writer is aborted.
        """
        self._check_open()
        try:
            check_frames(frames)
            for frame in frames:
                self._encode(frame)
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise EncodeError(f"cannot encode frame {self._frames}: {error}") from error
        except EncodeError:
            self.abort()
            raise

    def close(self) -> VideoInfo:
        """Finish the file and put it at `path`; its bytes are on disk when this returns.

        Calling it again returns the same. Raises `EncodeError` if there were no frames or the file
        could not be finished; then nothing is left behind.
        """
        if self._info is not None:
            return self._info
        self._check_open()
        try:
            if self._frames == 0:
                raise EncodeError("a video needs at least one frame")
            self._container.mux(self._stream.encode(None))
            self._container.close()
            size_bytes = _publish(self._part, self._path)
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise EncodeError(f"cannot finish the video at {self._path}: {error}") from error
        except EncodeError:
            self.abort()
            raise
        self._info = VideoInfo(
            frames=self._frames,
            duration_s=self._frames / self._fps,
            width=self._width,
            height=self._height,
            size_bytes=size_bytes,
        )
        return self._info

    def abort(self) -> None:
        """Throw the unfinished file away. Does nothing after `close` or another `abort`."""
        if self._info is not None or self._aborted:
            return
        self._aborted = True
        # Closing writes the trailer, which may fail for the reason that led here.
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.abort()
        elif not self._aborted:
            self.close()

    def _encode(self, frame: Frame) -> None:
        picture = self._scaler.reformat(
            av.VideoFrame.from_ndarray(frame, format="rgb24"),
            width=self._width,
            height=self._height,
            format="yuv420p",
            interpolation=_SCALING,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
            threads=1,
        )
        picture.pts = self._frames
        picture.time_base = Fraction(1, self._fps)
        self._container.mux(self._stream.encode(picture))
        self._frames += 1

    def _check_open(self) -> None:
        if self._aborted or self._info is not None:
            raise EncodeError(f"the video at {self._path} is already closed or aborted")


def _check_output(width: int, height: int, fps: int) -> None:
    if not (2 <= width <= SIDE_MAX_PX and 2 <= height <= SIDE_MAX_PX):
        raise EncodeError(f"a video of {width}x{height} is outside 2..{SIDE_MAX_PX} pixels")
    if width % 2 or height % 2:
        raise EncodeError(f"a video of {width}x{height} needs even sides: 4:2:0 halves its colour")
    if not 1 <= fps <= FPS_MAX:
        raise EncodeError(f"{fps} frames per second is outside 1..{FPS_MAX}")


def _add_video_stream(container: OutputContainer, width: int, height: int, fps: int) -> VideoStream:
    stream = container.add_stream("libx264", rate=fps, options=_X264_OPTIONS)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    codec = stream.codec_context
    codec.time_base = Fraction(1, fps)
    codec.thread_count = ENCODER_THREADS
    codec.gop_size = KEYFRAME_INTERVAL_S * fps
    # The tags say what `_encode` does to the pixels; players guess, and guess apart, without them.
    codec.colorspace = _BT709_MATRIX
    codec.color_primaries = ColorPrimaries.BT709
    codec.color_trc = ColorTrc.BT709
    codec.color_range = ColorRange.MPEG
    return stream


def _publish(part: Path, path: Path) -> int:
    """Move `part` to `path` so that a crash leaves either nothing or the whole file."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
        size_bytes = os.fstat(file.fileno()).st_size
    os.replace(part, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return size_bytes
