"""A real browser shows a clip of the stack, by its signed URL."""

from __future__ import annotations

from tests import tools
from tests.e2e.stacks import Stack, create, wait_for

PLAY = """async (url) => {
    const video = document.createElement('video');
    video.muted = true;
    video.src = url;
    document.body.append(video);
    await video.play();
    await new Promise(resolve => video.addEventListener('ended', resolve));
    return [video.videoWidth, video.videoHeight, video.duration, video.currentTime];
}"""


def test_a_clip_plays_from_its_signed_url(stack: Stack) -> None:
    with stack.client() as client:
        done = wait_for(client, create(client, size="128x128", seconds=1))
    with tools.browser() as browser:
        page = browser.new_page()
        page.set_content("<body></body>")
        width, height, duration, reached = page.evaluate(PLAY, done["content_urls"]["video"])
    assert (width, height) == (128, 128)
    assert abs(duration - 1) < 0.2
    assert abs(reached - duration) < 0.2
