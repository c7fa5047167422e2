"""The least HTTP/1.1 client that can measure: keep-alive, one request at a time, no TLS.

A general client costs as much CPU as the server it measures, and the two share the machine.
It repeats nothing by itself.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 64 << 10
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """Of a plain ``http://host:port``; ValueError otherwise."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise ValueError("the benchmarks speak to http://HOST:PORT only")
        return cls(parts.hostname, parts.port)

    def request(self, method: str, path: str, key: str, fields: Any = None) -> bytes:
        """A whole request, ready to be sent."""
        body = b"" if fields is None else json.dumps(fields).encode()
        head = [
            f"{method} {path} HTTP/1.1",
            f"host: {self.host}:{self.port}",
            f"authorization: Bearer {key}",
            f"content-length: {len(body)}",
        ]
        if body:
            head.append("content-type: application/json")
        return "\r\n".join([*head, "", ""]).encode() + body


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


class Connection:
    """One keep-alive connection. After an error it is of no more use."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._open = True

    @classmethod
    async def to(cls, address: Address) -> Self:
        return cls(*await asyncio.open_connection(address.host, address.port, limit=HEAD_BYTES_MAX))

    @property
    def usable(self) -> bool:
        """Whether another request may go this way: the server may have closed it meanwhile."""
        return self._open and not self._reader.at_eof()

    async def send(self, request: bytes) -> Answer:
        """The answer to ``request``; OSError, EOFError or ValueError when none came whole."""
        self._open = False
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length is None:
            raise ValueError("an answer without content-length")
        body = await self._reader.readexactly(int(length[1]))
        self._open = CLOSE.search(head) is None
        return Answer(int(head[9:12]), body)

    def close(self) -> None:
        self._open = False
        self._writer.close()
