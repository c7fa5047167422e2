"""The artifact store keeps its promises over a local directory and over S3 alike.

S3 is moto's server, spoken to over HTTP on the loopback interface.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from serving.media import (
    ArtifactMissing,
    ArtifactStore,
    S3Options,
    StoreError,
    StoreUnavailable,
    open_store,
)

BUCKET = "clips"
REGION = "us-east-1"
MIB = 1 << 20


def s3_options(endpoint_url: str) -> S3Options:
    return S3Options(
        endpoint_url=endpoint_url,
        region=REGION,
        access_key_id="test",
        secret_access_key="test",
    )


def start_s3() -> tuple[ThreadedMotoServer, str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return server, f"http://{host}:{port}"


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    server, url = start_s3()
    boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    ).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


@pytest.fixture
def s3(s3_url: str, request: pytest.FixtureRequest) -> ArtifactStore:
    """A prefix of its own for each test, named after it."""
    prefix = request.node.originalname
    return open_store(f"s3://{BUCKET}/some/{prefix}", s3=s3_options(s3_url))


@pytest.fixture
def local(tmp_path: Path) -> ArtifactStore:
    return open_store(f"file://{tmp_path}/artifacts")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    opened = request.getfixturevalue(request.param)
    assert isinstance(opened, ArtifactStore)
    return opened


async def read(store: ArtifactStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.read(key, start, end)])


async def keys(store: ArtifactStore, prefix: str = "") -> list[str]:
    return sorted([info.key async for info in store.list(prefix)])


async def until(condition: Callable[[], bool], *, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        for _ in iter(condition, True):
            await asyncio.sleep(0.001)


@pytest.mark.asyncio
async def test_what_is_put_can_be_headed_and_read(store: ArtifactStore) -> None:
    await store.put_bytes("video_1/a1/clip.mp4", b"moving pictures", "video/mp4")

    info = await store.head("video_1/a1/clip.mp4")

    assert (info.key, info.size_bytes) == ("video_1/a1/clip.mp4", 15)
    assert abs(info.last_modified.timestamp() - time.time()) < 60
    assert await read(store, "video_1/a1/clip.mp4") == b"moving pictures"


@pytest.mark.asyncio
async def test_an_empty_artifact_is_an_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    await store.put_file("empty", tmp_path / "empty", "text/plain")

    assert (await store.head("empty")).size_bytes == 0
    assert await read(store, "empty") == b""
    assert await read(store, "empty", 0, 10) == b""


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 4), (0, 1), (3, 7), (6, None), (9, None), (7, 10), (7, 99), (0, 10), (4, 4)],
)
@pytest.mark.asyncio
async def test_a_range_is_read_like_a_slice(
    store: ArtifactStore, start: int, end: int | None
) -> None:
    await store.put_bytes("digits", b"0123456789", "text/plain")

    assert await read(store, "digits", start, end) == b"0123456789"[start:end]


@pytest.mark.parametrize(("start", "end"), [(10, None), (10, 20), (50, 60), (50, None)])
@pytest.mark.asyncio
async def test_a_range_past_the_end_holds_nothing(
    store: ArtifactStore, start: int, end: int | None
) -> None:
    await store.put_bytes("digits", b"0123456789", "text/plain")

    assert await read(store, "digits", start, end) == b""


@pytest.mark.asyncio
async def test_a_large_file_round_trips_in_small_chunks(
    store: ArtifactStore, tmp_path: Path
) -> None:
    data = os.urandom(12 * MIB + 7)
    (tmp_path / "large").write_bytes(data)

    await store.put_file("large.bin", tmp_path / "large", "application/octet-stream")

    chunks = [chunk async for chunk in store.read("large.bin")]
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= MIB
    assert (await store.head("large.bin")).size_bytes == len(data)
    assert await read(store, "large.bin", 5 * MIB - 1, 5 * MIB + 1) == data[5 * MIB - 1 :][:2]


@pytest.mark.asyncio
async def test_a_reader_who_stops_early_costs_nothing(store: ArtifactStore) -> None:
    await store.put_bytes("large", bytes(3 * MIB), "application/octet-stream")

    chunks = store.read("large")
    first = await anext(chunks)
    del chunks

    assert 0 < len(first) <= MIB
    assert (await store.head("large")).size_bytes == 3 * MIB


@pytest.mark.asyncio
async def test_what_is_missing_is_reported_as_missing(store: ArtifactStore) -> None:
    await store.put_bytes("there/it/is", b"x", "text/plain")

    for key in ("not/there", "there/it"):
        with pytest.raises(ArtifactMissing):
            await store.head(key)
        for start, end in ((0, None), (5, None), (0, 5), (5, 5)):
            with pytest.raises(ArtifactMissing):
                await read(store, key, start, end)


@pytest.mark.asyncio
async def test_deleting_twice_is_fine(store: ArtifactStore) -> None:
    await store.put_bytes("a/b", b"x", "text/plain")

    await store.delete("a/b")
    await store.delete("a/b")

    with pytest.raises(ArtifactMissing):
        await store.head("a/b")


@pytest.mark.asyncio
async def test_a_prefix_is_deleted_by_whole_segments(store: ArtifactStore) -> None:
    for key in ("job/1/clip.mp4", "job/1/x/y.jpg", "job/10/clip.mp4", "job/2", "job/1.json"):
        await store.put_bytes(key, b"x", "text/plain")

    assert await store.delete_prefix("job/1") == 2
    assert await store.delete_prefix("job/1") == 0

    assert await keys(store) == ["job/1.json", "job/10/clip.mp4", "job/2"]
    # The emptied directories are gone, and can be written again.
    await store.put_bytes("job/1/clip.mp4", b"new", "video/mp4")
    assert await read(store, "job/1/clip.mp4") == b"new"


@pytest.mark.asyncio
async def test_a_listing_covers_what_is_below_the_prefix(store: ArtifactStore) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        await store.put_bytes(key, b"four", "text/plain")

    assert await keys(store) == ["a/1", "a/b/2", "ab/3"]
    assert await keys(store, "a") == ["a/1", "a/b/2"]
    assert await keys(store, "nothing/here") == []
    listed = [info async for info in store.list("a/b")]
    assert listed == [await store.head("a/b/2")]


@pytest.mark.asyncio
async def test_the_etag_is_quoted_stable_and_follows_the_bytes(store: ArtifactStore) -> None:
    await store.put_bytes("a", b"old", "text/plain")
    first = (await store.head("a")).etag

    assert (await store.head("a")).etag == first
    await store.put_bytes("a", b"newer", "text/plain")
    second = (await store.head("a")).etag

    assert first != second
    assert first[0] == first[-1] == '"'


@pytest.mark.asyncio
async def test_a_reader_sees_the_old_bytes_or_the_new_never_a_mix(
    store: ArtifactStore, tmp_path: Path
) -> None:
    # Given a large artifact, a reader that began with its first chunk, ...
    size_bytes = 6 * MIB
    versions = [bytes([number]) * size_bytes for number in range(4)]
    await store.put_bytes("clip", versions[0], "video/mp4")
    began_before = store.read("clip")
    first = await anext(began_before)

    # ... when it is overwritten, in parts, while others read all the time, ...
    seen: list[bytes] = []
    done = asyncio.Event()

    async def keep_reading() -> None:
        while not done.is_set():
            seen.append(await read(store, "clip"))

    readers = [asyncio.create_task(keep_reading()) for _ in range(2)]
    for version in versions[1:]:
        path = tmp_path / "next"
        path.write_bytes(version)
        await store.put_file("clip", path, "video/mp4")
    done.set()
    await asyncio.gather(*readers)

    # ... then everyone saw one version from the first byte to the last.
    seen.append(first + b"".join([chunk async for chunk in began_before]))
    assert all(whole in versions for whole in seen)
    assert seen[-1] == versions[0]
    assert await read(store, "clip") == versions[-1]


@pytest.mark.asyncio
async def test_an_abandoned_upload_is_never_seen_by_half(tmp_path: Path) -> None:
    root, large = tmp_path / "artifacts", tmp_path / "large"
    store = open_store(f"file://{root}")
    await store.put_bytes("clip", b"old", "video/mp4")
    large.touch()
    os.truncate(large, 128 * MIB)

    # Given an upload that has begun to write, when it is cancelled, ...
    upload = asyncio.create_task(store.put_file("clip", large, "video/mp4"))
    await until(lambda: len(os.listdir(root)) > 1 or upload.done())
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)

    # ... then the artifact is whole, and soon nothing else is there: obstore tidies up in a thread.
    assert (await store.head("clip")).size_bytes in (3, 128 * MIB)
    await until(lambda: os.listdir(root) == ["clip"])


PUT_AND_DIE = """
import asyncio, os, signal, sys
from serving.media import open_store

async def main():
    await open_store(sys.argv[1]).put_bytes("a/b/clip", b"kept", "video/mp4")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_what_was_put_outlives_the_process_that_put_it(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/artifacts"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PUT_AND_DIE, url, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )

    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL

    assert await read(open_store(url), "a/b/clip") == b"kept"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "a//b",
        "a/",
        "a/../b",
        "..",
        "a/./b",
        "a b",
        "a%2e",
        "clip#1",
        "a\\b",
        "ä",
        "a\n",
        "a" * 201,
        "/".join(["abc"] * 200),
    ],
)
@pytest.mark.asyncio
async def test_a_key_outside_the_rules_is_refused(local: ArtifactStore, key: str) -> None:
    with pytest.raises(StoreError, match="key"):
        await local.put_bytes(key, b"x", "text/plain")
    with pytest.raises(StoreError, match="key"):
        await read(local, key)
    with pytest.raises(StoreError, match="key"):
        await local.head(key)
    with pytest.raises(StoreError, match="key"):
        await local.delete(key)
    with pytest.raises(StoreError, match="key"):
        await local.delete_prefix(key)
    with pytest.raises(StoreError, match="key"):
        await local.presign_get(key, 60)


@pytest.mark.asyncio
async def test_what_cannot_be_asked_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a range"):
        await read(store, "a", -1)
    with pytest.raises(StoreError, match="not a range"):
        await read(store, "a", 5, 4)
    with pytest.raises(StoreError, match="no file to store"):
        await store.put_file("a", tmp_path / "missing", "text/plain")
    with pytest.raises(StoreError, match="604800 s"):
        await store.presign_get("a", 604_801)
    with pytest.raises(StoreError, match="not a file name"):
        await store.put_bytes("a", b"x", "text/plain", filename='x"; evil="')


@pytest.mark.parametrize(
    "url", ["/tmp/x", "file://tmp/x", "s3:///x", "gs://b/x", "s3://b/a//c", "file:///tmp/x?y=1"]
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(StoreError):
        open_store(url)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        open_store(f"file://{tmp_path}/file/store")


@pytest.mark.asyncio
async def test_a_local_store_has_no_urls_and_a_directory_of_any_name(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/two%20words")
    await store.put_bytes("a", b"x", "text/plain")

    assert await store.presign_get("a", 60) is None
    assert (tmp_path / "two words" / "a").read_bytes() == b"x"


@pytest.mark.asyncio
async def test_a_presigned_url_gives_the_bytes_to_anyone(s3: ArtifactStore) -> None:
    await s3.put_bytes("v/clip.mp4", b"0123456789", "video/mp4", filename="video_1.mp4")

    url = await s3.presign_get("v/clip.mp4", 900)

    assert url is not None
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["900"]
    async with httpx.AsyncClient() as browser:
        whole = await browser.get(url)
        part = await browser.get(url, headers={"Range": "bytes=2-5"})
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["content-disposition"] == 'inline; filename="video_1.mp4"'
    assert (part.status_code, part.content) == (206, b"2345")
    assert part.headers["content-range"] == "bytes 2-5/10"


@pytest.mark.asyncio
async def test_a_large_upload_keeps_its_content_type(s3: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(6 * MIB))
    await s3.put_file("clip.mp4", tmp_path / "large", "video/mp4")

    url = await s3.presign_get("clip.mp4", 60)

    assert url is not None
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(url, headers={"Range": "bytes=0-0"})
    assert answer.headers["content-type"] == "video/mp4"


@pytest.mark.asyncio
async def test_the_environment_says_where_s3_is(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    store = open_store(f"s3://{BUCKET}/environment")

    await store.put_bytes("a", b"x", "text/plain")

    assert await read(store, "a") == b"x"


def test_secrets_are_not_printed() -> None:
    options = S3Options(access_key_id="id", secret_access_key="hush", session_token="hush")
    assert "hush" not in repr(options)


async def every_operation_is_unavailable(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(6 * MIB))
    with pytest.raises(StoreUnavailable):
        await store.head("a")
    with pytest.raises(StoreUnavailable):
        await read(store, "a")
    with pytest.raises(StoreUnavailable):
        await read(store, "a", 1, 2)
    with pytest.raises(StoreUnavailable):
        await store.put_bytes("a", b"x", "text/plain")
    with pytest.raises(StoreUnavailable):
        await store.delete("a")
    with pytest.raises(StoreUnavailable):
        await keys(store)
    with pytest.raises(StoreUnavailable):
        await store.put_file("a", tmp_path / "large", "video/mp4")


@pytest.mark.asyncio
async def test_a_store_that_is_away_is_unavailable_soon(tmp_path: Path) -> None:
    server, url = start_s3()
    server.stop()
    store = open_store(f"s3://{BUCKET}/x", s3=s3_options(url))

    started = time.monotonic()
    await every_operation_is_unavailable(store, tmp_path)

    assert time.monotonic() - started < 7 * 3  # seven operations, well below their 10 s each


@pytest.mark.asyncio
async def test_a_store_that_never_answers_is_unavailable_at_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store = open_store(f"s3://{BUCKET}/x", s3=s3_options(url), timeout_s=0.3)

        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="in time"):
            await store.head("a")

        assert time.monotonic() - started < 2


@pytest.mark.asyncio
async def test_a_bucket_that_does_not_exist_refuses_what_is_put(s3_url: str) -> None:
    store = open_store("s3://no-such-bucket/x", s3=s3_options(s3_url))

    with pytest.raises(StoreError) as caught:
        await store.put_bytes("a", b"x", "text/plain")

    assert caught.type is StoreError
