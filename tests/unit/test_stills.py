"""Stills are taken from the frames they promise, at the sizes they promise."""

import io

import numpy as np
import pytest
from PIL import Image

from serving.media import (
    EncodeError,
    Frame,
    Frames,
    StillsCollector,
    preview_jpeg,
    spritesheet,
    thumbnail,
)

STEP = 5  # grey levels between neighbouring frames: JPEG keeps them apart


def numbered(frames: int, *, width: int = 320, height: int = 180) -> Frames:
    """Frame i is flat grey of level i * STEP, so a picture tells which frame it is."""
    levels = np.arange(frames, dtype=np.uint8) * STEP
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def decode(jpeg: bytes) -> Frame:
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == "JPEG"
        return np.asarray(image.convert("RGB"))


def frame_shown(picture: Frame) -> int:
    return round(float(picture.mean()) / STEP)


def test_a_thumbnail_is_shrunk_and_keeps_its_shape() -> None:
    picture = decode(thumbnail(np.full((720, 1280, 3), (200, 60, 20), np.uint8)))

    assert picture.shape == (288, 512, 3)
    assert picture[100, 100] == pytest.approx((200, 60, 20), abs=3)


@pytest.mark.parametrize(
    ("clip", "shape"),
    [((1280, 720), (144, 256, 3)), ((480, 832), (256, 148, 3)), ((96, 64), (64, 96, 3))],
)
def test_a_preview_is_small_and_has_the_shape_of_its_clip(
    clip: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    coarse = np.full((3, 5, 3), (200, 60, 20), np.uint8)
    picture = decode(preview_jpeg(coarse, clip_size=clip))

    assert picture.shape == shape
    assert picture[10, 10] == pytest.approx((200, 60, 20), abs=3)


def test_a_small_frame_is_not_enlarged() -> None:
    assert decode(thumbnail(np.zeros((48, 64, 3), np.uint8))).shape == (48, 64, 3)


def test_the_thumbnail_is_the_middle_frame_however_the_clip_was_cut() -> None:
    clip = numbered(41)
    whole, cut = StillsCollector(41), StillsCollector(41)

    whole.write(clip)
    for start in range(0, 41, 3):
        cut.write(clip[start : start + 3])

    assert frame_shown(decode(whole.finish().thumbnail)) == 20
    assert cut.finish() == whole.finish()


@pytest.mark.parametrize(
    ("frames", "expected", "grid"),
    [
        (48, list(range(0, 48, 3)), (4, 4)),
        (16, list(range(16)), (4, 4)),
        (17, [i * 17 // 16 for i in range(16)], (4, 4)),
        (6, list(range(6)), (4, 2)),
        (3, [0, 1, 2], (3, 1)),
        (1, [0], (1, 1)),
    ],
)
def test_the_sheet_shows_evenly_spaced_frames_in_order(
    frames: int, expected: list[int], grid: tuple[int, int]
) -> None:
    collector = StillsCollector(frames)
    collector.write(numbered(frames))

    stills = collector.finish()

    assert (stills.columns, stills.rows) == grid
    assert (stills.tile_width, stills.tile_height) == (160, 90)
    sheet = decode(stills.spritesheet)
    assert sheet.shape == (90 * stills.rows, 160 * stills.columns, 3)
    shown = []
    for i in range(stills.tiles):
        top, left = i // stills.columns * 90, i % stills.columns * 160
        shown.append(frame_shown(sheet[top + 10 : top + 80, left + 10 : left + 150]))
    assert shown == expected


def test_stills_have_the_shape_of_the_video_when_it_is_scaled() -> None:
    collector = StillsCollector(1, clip_size=(640, 480))
    collector.write(numbered(1, width=320, height=320))

    stills = collector.finish()

    assert decode(stills.thumbnail).shape == (384, 512, 3)
    assert (stills.tile_width, stills.tile_height) == (160, 120)


def test_the_same_frames_give_the_same_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 90, 160, 3), dtype=np.uint8)
    first, second = StillsCollector(20), StillsCollector(20)

    first.write(noise)
    second.write(noise.copy())

    assert first.finish() == second.finish()


def test_a_clip_that_is_shorter_or_longer_than_announced_is_an_error() -> None:
    collector = StillsCollector(10)
    collector.write(numbered(9))

    with pytest.raises(EncodeError, match="got 9 of the announced 10"):
        collector.finish()
    with pytest.raises(EncodeError, match="more than the announced 10"):
        collector.write(numbered(2))
    with pytest.raises(EncodeError, match="at least one frame"):
        StillsCollector(0)


def test_pictures_of_another_form_are_refused() -> None:
    with pytest.raises(EncodeError, match=r"expected uint8 \[H, W, 3\]"):
        thumbnail(np.zeros((48, 64), np.uint8))
    with pytest.raises(EncodeError, match="differ"):
        spritesheet([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])
    with pytest.raises(EncodeError, match="at least one tile"):
        spritesheet([])
