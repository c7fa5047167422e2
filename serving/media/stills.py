"""Still pictures of a clip: a thumbnail, a sheet of small frames to scrub over, a preview."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from serving.media.errors import EncodeError
from serving.media.frames import Frame, Frames, check_frame, check_frames

THUMBNAIL_WIDTH_MAX_PX: Final = 512
TILE_WIDTH_MAX_PX: Final = 160
PREVIEW_SIDE_MAX_PX: Final = 256
TILES_MAX: Final = 16
TILE_COLUMNS: Final = 4
JPEG_QUALITY: Final = 85


@dataclass(frozen=True)
class Stills:
    """The stills of one clip, as JPEG files, and how to cut the sheet.

    Tile i, counted from 0 along the rows, lies at column `i % columns` and row `i // columns`, and
    shows the clip at i / tiles of its duration.
    """

    thumbnail: bytes
    spritesheet: bytes
    tiles: int
    columns: int
    rows: int
    tile_width: int
    tile_height: int


class StillsCollector:
    """Picks the stills of a clip from the chunks its `VideoWriter` is fed.

    The thumbnail is the middle frame, number `frame_count // 2` counted from 0. The sheet holds
    min(16, frame_count) frames, tile i being frame `i * frame_count // tiles`. Only these are kept,
    already shrunk, so memory does not grow with the clip.

    `clip_size` is the (width, height) the video is written in; give it where the frames are scaled
    on the way, so that the stills have the shape of the video. The same frames give the same bytes,
    for one Pillow release.
    """

    def __init__(self, frame_count: int, *, clip_size: tuple[int, int] | None = None) -> None:
        if frame_count < 1:
            raise EncodeError(f"stills need at least one frame, not {frame_count}")
        self._frame_count = frame_count
        self._clip_size = clip_size
        self._seen = 0
        self._thumbnail: bytes | None = None
        self._tiles: list[Frame] = []
        tiles = min(TILES_MAX, frame_count)
        self._tile_frames = frozenset(i * frame_count // tiles for i in range(tiles))

    def write(self, frames: Frames) -> None:
        """Take the next chunk, uint8 [F, H, W, 3] RGB.

        Raises `EncodeError` if the shape is wrong or the clip is longer than was announced.
        """
        check_frames(frames)
        if self._seen + len(frames) > self._frame_count:
            raise EncodeError(f"more than the announced {self._frame_count} frames")
        for number, frame in enumerate(frames, start=self._seen):
            if number == self._frame_count // 2:
                self._thumbnail = _jpeg(_shrunk(frame, THUMBNAIL_WIDTH_MAX_PX, self._clip_size))
            if number in self._tile_frames:
                tile = _shrunk(frame, TILE_WIDTH_MAX_PX, self._clip_size)
                self._tiles.append(np.asarray(tile))
        self._seen += len(frames)

    def finish(self) -> Stills:
        """The stills. Raises `EncodeError` if frames are still to come."""
        if self._seen < self._frame_count or self._thumbnail is None:
            raise EncodeError(f"got {self._seen} of the announced {self._frame_count} frames")
        tile_height, tile_width, _ = self._tiles[0].shape
        columns = min(TILE_COLUMNS, len(self._tiles))
        return Stills(
            thumbnail=self._thumbnail,
            spritesheet=spritesheet(self._tiles, columns=columns),
            tiles=len(self._tiles),
            columns=columns,
            rows=-(-len(self._tiles) // columns),
            tile_width=tile_width,
            tile_height=tile_height,
        )


def thumbnail(frame: Frame, *, width_max: int = THUMBNAIL_WIDTH_MAX_PX) -> bytes:
    """A JPEG of `frame`, uint8 [H, W, 3] RGB, shrunk to `width_max` pixels but never enlarged."""
    check_frame(frame)
    return _jpeg(_shrunk(frame, width_max, None))


def preview_jpeg(picture: Frame, *, clip_size: tuple[int, int]) -> bytes:
    """A JPEG of a few coarse pixels, uint8 [H, W, 3] RGB, smoothed out to the shape of the clip.

    `clip_size` is its (width, height); the longer side becomes 256 pixels, or the clip's if less.
    """
    check_frame(picture)
    scale = min(1.0, PREVIEW_SIDE_MAX_PX / max(clip_size))
    width, height = (max(1, round(side * scale)) for side in clip_size)
    image = Image.fromarray(picture)
    return _jpeg(image.resize((width, height), Image.Resampling.BICUBIC))


def spritesheet(tiles: Sequence[Frame], *, columns: int = TILE_COLUMNS) -> bytes:
    """A JPEG of equally large `tiles`, uint8 [H, W, 3] RGB, row by row; spare cells are black."""
    if not tiles or columns < 1:
        raise EncodeError("a sheet needs at least one tile and one column")
    for tile in tiles:
        check_frame(tile)
        if tile.shape != tiles[0].shape:
            raise EncodeError(f"tiles of a sheet differ: {tile.shape} and {tiles[0].shape}")
    height, width, _ = tiles[0].shape
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = tile
    return _jpeg(Image.fromarray(sheet))


def _shrunk(frame: Frame, width_max: int, clip_size: tuple[int, int] | None) -> Image.Image:
    height, width, _ = frame.shape
    shape_width, shape_height = clip_size or (width, height)
    new_width = min(width_max, shape_width)
    new_height = max(1, round(shape_height * new_width / shape_width))
    image = Image.fromarray(frame)
    if image.size == (new_width, new_height):
        return image
    return image.resize((new_width, new_height), Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
