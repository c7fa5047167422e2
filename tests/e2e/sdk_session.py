"""What a frontend does with the official OpenAI SDK; run by the tests with each version of it.

A program of its own, because two versions do not fit in one process. Reads OPENAI_BASE_URL and
OPENAI_API_KEY like any user of the SDK; ends with 0 and prints ``ok`` when all held.
"""

from __future__ import annotations

import warnings

import openai
import pytest

warnings.simplefilter("ignore", DeprecationWarning)
SMALL = {"seed": 7, "steps": 3, "fps": 8}


def main() -> None:
    client = openai.OpenAI(max_retries=0)
    first = client.videos.create(
        model="sora-2", prompt="a red ball", seconds="4", size="1280x720", extra_body=SMALL
    )
    assert first.status == "queued", first
    done = client.videos.poll(first.id)
    assert (done.status, done.progress, done.seconds, done.size) == (
        "completed",
        100,
        "4",
        "1280x720",
    ), done
    clip = client.videos.download_content(done.id).read()
    assert clip[4:8] == b"ftyp"
    for variant in ("thumbnail", "spritesheet"):
        assert client.videos.download_content(done.id, variant=variant).read()[:2] == b"\xff\xd8"

    again = client.videos.create_and_poll(
        model="sora-2", prompt="a red ball", seconds="4", size="1280x720", extra_body=SMALL
    )
    assert client.videos.download_content(again.id).read() == clip, "same seed, same bytes"

    ids = [
        client.videos.create(prompt=f"number {i}", extra_body={**SMALL, "seconds": 1}).id
        for i in range(3)
    ]
    listed = [video.id for video in client.videos.list(limit=2)]
    assert listed[:5] == [*ids[::-1], again.id, first.id], listed

    long = client.videos.create(prompt="long", extra_body={"steps": 2000})
    while client.videos.retrieve(long.id).progress == 0:
        pass
    cancelled = client.post(f"/videos/{long.id}/cancel", cast_to=type(long))
    assert str(cancelled.status) == "cancelled", cancelled
    polled = client.videos.poll(long.id)
    assert str(polled.status) == "cancelled", polled
    assert polled.error is not None
    assert polled.error.code == "cancelled"
    # The replica is free again: a job behind it completes.
    assert client.videos.poll(ids[-1]).status == "completed"

    assert client.videos.delete(first.id).deleted is True
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.retrieve(first.id)
    assert missing.value.code == "video_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="x", size="2x2")  # type: ignore[arg-type,unused-ignore]
    assert (refused.value.code, refused.value.param) == ("unsupported_size", "size")
    assert refused.value.request_id
    with pytest.raises(openai.APIStatusError) as huge:
        client.videos.create(prompt="x" * 10_000_000)
    assert huge.value.status_code == 413
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").videos.list()
    assert [model.id for model in client.models.list()] == ["demo-wan", "espeak"]
    print("ok")


if __name__ == "__main__":
    main()
