"""One artifact store over a local directory or an S3 bucket.

What is promised, on both: a `put_…` that has returned can be read by every process, also after
SIGKILL of the one that wrote it; a reader sees the old bytes of a key or the new ones, never a mix;
a `put_…` that failed or was cancelled has happened or has not, never by half.

A local store writes to a temporary name and renames; obstore does not fsync, so the store does it
after the rename. A power cut during a `put_…` may therefore leave a key with missing bytes, but
never one that the caller was told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, GenericError
from obstore.store import LocalStore, S3Store

from serving.media.errors import ArtifactMissing, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig, S3Config

TIMEOUT_S: Final = 10.0
"""For a request without a body, and for each chunk of a read."""

PUT_BYTES_PER_S_MIN: Final = 1 << 20
"""An upload slower than this, over `TIMEOUT_S`, has failed."""

READ_CHUNK_BYTES_MAX: Final = 1 << 20
KEY_LENGTH_MAX: Final = 512
PRESIGN_EXPIRES_S_MAX: Final = 7 * 24 * 3600
"""The limit of AWS Signature Version 4."""

_PART_BYTES = 5 << 20  # S3's smallest part; with four in flight an upload holds 20 MiB
_PARTS_IN_FLIGHT = 4
_DELETES_IN_FLIGHT = 16
_CONNECT_TIMEOUT_S = 3
_RETRIES_MAX = 3
# obstore's own limit counts the whole body, so a slow reader would run into it; the time limits
# here are on progress, and this one only ends what they cannot see.
_REQUEST_TIMEOUT_S = 3600

# What the file system and S3 both take as it stands: obstore would percent-encode the rest, and
# keeps local names ending in `#<digits>` for itself.
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True)
class ArtifactInfo:
    """What is stored under a key. `etag` is quoted as HTTP wants it and changes with the bytes."""

    key: str
    size_bytes: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True)
class S3Options:
    """How to reach S3. What is None comes from the AWS_* environment or the machine's role.

    `endpoint_url` may be http:// (MinIO in the same cluster). Requests are path-style unless
    `virtual_hosted_style`; then the endpoint's host has to begin with the bucket.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    virtual_hosted_style: bool = False


def open_store(
    url: str, *, s3: S3Options | None = None, timeout_s: float = TIMEOUT_S
) -> ArtifactStore:
    """The store at `file:///absolute/directory` (created if missing) or `s3://bucket/prefix`.

    Opening makes no request: an S3 store that is away shows at its first use. Raises `StoreError`
    if the URL is of neither form or the directory cannot be made.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise StoreError(f"a store URL has no query or fragment: {url!r}")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        root = Path(unquote(parts.path))
        with _translated(f"store {url!r}", missing=StoreError):
            local = LocalStore(prefix=root, mkdir=True, automatic_cleanup=True)
        return ArtifactStore(local, timeout_s=timeout_s, local_root=root)
    if parts.scheme == "s3" and parts.netloc:
        prefix = parts.path.strip("/")
        if prefix:
            _check_key(prefix)
        return ArtifactStore(
            _s3_store(parts.netloc, prefix, s3 or S3Options(), timeout_s), timeout_s=timeout_s
        )
    raise StoreError(f"a store URL is file:///absolute/directory or s3://bucket/prefix: {url!r}")


class ArtifactStore:
    """Named, immutable-by-habit byte strings. Made by `open_store`; safe for concurrent use.

    A key is segments of letters, digits, `.`, `_` and `-` between single slashes. Every method
    raises `StoreError` for a key that is not, `StoreUnavailable` when the store fails or does not
    answer in time, and `StoreError` when it refuses.
    """

    def __init__(
        self, backend: LocalStore | S3Store, *, timeout_s: float, local_root: Path | None = None
    ) -> None:
        self._backend = backend
        self._timeout_s = timeout_s
        self._local_root = local_root

    async def put_file(
        self, key: str, path: Path, content_type: str, *, filename: str | None = None
    ) -> None:
        """Store the file at `path`, in parts if it is large; see `put_bytes`."""
        _check_key(key)
        try:
            size_bytes = (await asyncio.to_thread(path.stat)).st_size
        except OSError as error:
            raise StoreError(f"no file to store as {key!r}: {error}") from error
        await self._put(key, path, size_bytes, _attributes(content_type, filename))

    async def put_bytes(
        self, key: str, data: bytes, content_type: str, *, filename: str | None = None
    ) -> None:
        """Store `data` under `key`, replacing what was there.

        S3 keeps `content_type`, and `filename` as the name a browser saves under, and sends both
        with a presigned GET. A local directory keeps neither: there the caller knows them by key.
        """
        _check_key(key)
        await self._put(key, data, len(data), _attributes(content_type, filename))

    async def head(self, key: str) -> ArtifactInfo:
        """What is stored under `key`. Raises `ArtifactMissing`."""
        _check_key(key)
        with _translated(key):
            async with asyncio.timeout(self._timeout_s):
                return _info(await obstore.head_async(self._backend, key))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to but not including `end`, in chunks of at most 1 MiB.

        Like a slice: an `end` past the last byte is the end, and a `start` past it yields nothing.
        All chunks are of one version of the artifact. Raises `ArtifactMissing`, at the first chunk.
        """
        _check_key(key)
        if start < 0 or (end is not None and end < start):
            raise StoreError(f"not a range of {key!r}: {start} to {end}")
        result = await self._get(key, start, end)
        if result is None:
            return
        stream = result.stream(min_chunk_size=READ_CHUNK_BYTES_MAX // 4)
        while True:
            with _translated(key):
                async with asyncio.timeout(self._timeout_s):
                    chunk = await anext(stream, None)
            if chunk is None:
                return
            for offset in range(0, len(chunk), READ_CHUNK_BYTES_MAX):
                yield chunk[offset : offset + READ_CHUNK_BYTES_MAX]

    async def delete(self, key: str) -> None:
        """Remove `key`. It is fine if there was nothing."""
        _check_key(key)
        with contextlib.suppress(ArtifactMissing), _translated(key):
            async with asyncio.timeout(self._timeout_s):
                await obstore.delete_async(self._backend, key)

    async def delete_prefix(self, prefix: str) -> int:
        """Remove every key below `prefix`, by whole segments; returns how many there were.

        `a/b` covers `a/b/c`, but neither `a/bc` nor `a/b` itself.
        """
        _check_key(prefix)
        keys = [info.key async for info in self.list(prefix)]
        for i in range(0, len(keys), _DELETES_IN_FLIGHT):
            await asyncio.gather(*map(self.delete, keys[i : i + _DELETES_IN_FLIGHT]))
        return len(keys)

    async def list(self, prefix: str = "") -> AsyncIterator[ArtifactInfo]:
        """What is stored below `prefix`, by whole segments, in no order; "" for everything."""
        if prefix:
            _check_key(prefix)
        stream = obstore.list(self._backend, prefix or None)
        while True:
            with _translated(prefix, missing=StoreError):
                async with asyncio.timeout(self._timeout_s):
                    batch = await anext(stream, None)
            if batch is None:
                return
            for meta in batch:
                yield _info(meta)

    async def presign_get(self, key: str, expires_s: int) -> str | None:
        """A URL that gives the bytes to whoever holds it, for `expires_s`; None for a local store.

        It answers Range requests. It does not check that there is anything to get. Credentials of a
        role may expire before the URL does, and then end it.
        """
        _check_key(key)
        if not 1 <= expires_s <= PRESIGN_EXPIRES_S_MAX:
            raise StoreError(f"a URL lives 1 to {PRESIGN_EXPIRES_S_MAX} s, not {expires_s}")
        if not isinstance(self._backend, S3Store):
            return None
        with _translated(key):
            async with asyncio.timeout(self._timeout_s):
                return await obstore.sign_async(
                    self._backend, "GET", key, timedelta(seconds=expires_s)
                )

    async def _put(
        self, key: str, source: Path | bytes, size_bytes: int, attributes: Attributes
    ) -> None:
        # A missing target means a missing bucket: nothing the caller could wait or ask for.
        with _translated(key, missing=StoreError):
            async with asyncio.timeout(self._timeout_s + size_bytes / PUT_BYTES_PER_S_MIN):
                await obstore.put_async(
                    self._backend,
                    key,
                    source,
                    # LocalStore refuses attributes rather than dropping them.
                    attributes=attributes if self._local_root is None else None,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_IN_FLIGHT,
                )
                if self._local_root is not None:
                    await asyncio.to_thread(_sync_to_disk, self._local_root, key)

    async def _get(self, key: str, start: int, end: int | None) -> GetResult | None:
        """The open result, or None if the range holds no bytes."""
        options: GetOptions = {}
        if end is not None:
            options["range"] = (start, end)
        elif start > 0:
            options["range"] = {"offset": start}
        if start == end:
            await self.head(key)
            return None
        try:
            with _translated(key):
                async with asyncio.timeout(self._timeout_s):
                    return await obstore.get_async(self._backend, key, options=options)
        except StoreUnavailable:
            # A start past the end is the same GenericError as a failure; the size tells them apart.
            if start >= (await self.head(key)).size_bytes:
                return None
            raise


def _s3_store(bucket: str, prefix: str, options: S3Options, timeout_s: float) -> S3Store:
    config: S3Config = {"virtual_hosted_style_request": options.virtual_hosted_style}
    if options.endpoint_url is not None:
        config["endpoint"] = options.endpoint_url
    if options.region is not None:
        config["region"] = options.region
    if options.access_key_id is not None:
        config["access_key_id"] = options.access_key_id
    if options.secret_access_key is not None:
        config["secret_access_key"] = options.secret_access_key
    if options.session_token is not None:
        config["session_token"] = options.session_token
    client: ClientConfig = {
        "allow_http": _endpoint_url(options).startswith("http://"),
        "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=timeout_s),
        "timeout": timedelta(seconds=_REQUEST_TIMEOUT_S),
    }
    with _translated(f"bucket {bucket!r}", missing=StoreError):
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options=client,
            retry_config={
                "max_retries": _RETRIES_MAX,
                "retry_timeout": timedelta(seconds=timeout_s),
            },
        )


def _endpoint_url(options: S3Options) -> str:
    """The endpoint obstore is going to use, in its order of precedence; "" for AWS itself."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return options.endpoint_url or next(filter(None, map(os.environ.get, names)), "")


def _attributes(content_type: str, filename: str | None) -> Attributes:
    attributes: Attributes = {"Content-Type": content_type}
    if filename is not None:
        if not _SEGMENT.fullmatch(filename):
            raise StoreError(f"not a file name of letters, digits, '.', '_' and '-': {filename!r}")
        # inline: a <video> tag plays it, and "save as" still offers the name.
        attributes["Content-Disposition"] = f'inline; filename="{filename}"'
    return attributes


def _check_key(key: str) -> None:
    if len(key) > KEY_LENGTH_MAX:
        raise StoreError(f"a key has at most {KEY_LENGTH_MAX} characters, not {len(key)}")
    for segment in key.split("/"):
        if segment in {".", ".."} or not _SEGMENT.fullmatch(segment):
            raise StoreError(
                f"not a key: {key!r}; wanted segments of 1 to 200 letters, digits, '.', '_' or '-'"
                " between single slashes, none of them '.' or '..'"
            )


def _info(meta: ObjectMeta) -> ArtifactInfo:
    return ArtifactInfo(
        key=meta["path"],
        size_bytes=meta["size"],
        etag=meta["e_tag"] or "",
        last_modified=meta["last_modified"],
    )


def _sync_to_disk(root: Path, key: str) -> None:
    """fsync the file and each directory down to it, some of which may be new."""
    path = root / key
    for place in (path, *path.parents):
        # Another process may just have deleted or cleaned up, which is as durable as it asked for.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if place == root:
            return


@contextlib.contextmanager
def _translated(what: str, *, missing: type[StoreError] = ArtifactMissing) -> Iterator[None]:
    """Turn obstore's errors into this room's.

    GenericError is how obstore reports connections, time-outs and 5xx, but also the rarer 4xx; the
    latter cannot be told apart without parsing text, so they too count as worth another try.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise missing(f"{what}: not found") from error
    except TimeoutError as error:
        raise StoreUnavailable(f"{what}: the store did not answer in time") from error
    except (GenericError, OSError) as error:
        raise StoreUnavailable(f"{what}: {_first_line(error)}") from error
    except (BaseError, NotImplementedError, ValueError) as error:
        raise StoreError(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """obstore appends a page of Rust debug output, with request headers, to each message."""
    return str(error).partition("\n")[0]
