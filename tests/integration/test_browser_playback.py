"""The MP4 files Reelserve writes play in a real browser, in the colours that were generated."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from serving.media import VideoWriter
from tests import tools

FPS = 16
SECONDS = 2
WIDTH, HEIGHT = 128, 96

# Saturated, so that a file tagged with the wrong colour matrix or range is off by far more.
MIDDLE_RGB = (40, 190, 70)
COLOUR_TOLERANCE = 8  # of 255: 4:2:0 subsampling, rounding and compression

PAGE = '<!doctype html><video src="clip.mp4" preload="auto" muted></video>'
READ_MIDDLE_PIXEL = """
video => {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  return [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
}
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with tools.browser() as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page with one clip, ready to play: a coloured rectangle in a grey picture."""
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / "index.html").write_text(PAGE)
    with serve(tmp_path) as address, chromium.new_page() as page:
        page.goto(f"{address}/index.html")
        # HAVE_ENOUGH_DATA: the browser could play it to the end.
        page.wait_for_function("document.querySelector('video').readyState === 4")
        yield page


def write_clip(path: Path) -> None:
    frames = np.full((FPS * SECONDS, HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    frames[:, HEIGHT // 4 : -HEIGHT // 4, WIDTH // 4 : -WIDTH // 4] = MIDDLE_RGB
    writer = VideoWriter(path, width=WIDTH, height=HEIGHT, fps=FPS)
    writer.write(frames)
    writer.close()


@contextmanager
def serve(directory: Path) -> Iterator[str]:
    """The directory over HTTP, on a free port of the loopback interface."""
    handler = partial(SimpleHTTPRequestHandler, directory=directory)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_the_browser_reads_the_size_and_the_length(page: Page) -> None:
    video = page.locator("video")

    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [WIDTH, HEIGHT]
    assert video.evaluate("video => video.duration") == pytest.approx(SECONDS, abs=1 / FPS)
    assert video.evaluate("video => video.error") is None


def test_the_clip_plays_to_its_end(page: Page) -> None:
    video = page.locator("video")

    video.evaluate("video => video.play()")
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
    page.wait_for_function("document.querySelector('video').ended")

    assert video.evaluate("video => video.currentTime") == pytest.approx(SECONDS, abs=1 / FPS)


def test_the_picture_has_the_colours_that_were_written(page: Page) -> None:
    middle = page.locator("video").evaluate(READ_MIDDLE_PIXEL)

    assert middle == pytest.approx(MIDDLE_RGB, abs=COLOUR_TOLERANCE)
