"""Redis over raw sockets, so that the client costs as little as Python allows.

:class:`WireCell` is a :class:`~serving.jobs.Cell` whose scripts go over such a socket: the queue's
own classes work on it unchanged, in coroutines that :func:`drive` resumes. No event loop, no
client library.
"""

from __future__ import annotations

import heapq
import select
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Coroutine, Generator, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis

from loadtest.errors import LoadTestError
from serving.jobs import Cell

CHUNK_BYTES = 1 << 16
ANSWER_S_MAX = 60.0
SO_TIMESTAMPNS = 35
"""Linux: with what is received comes when it arrived, by the wall clock (socket(7))."""
STAMP = struct.Struct("@ll")

Work = Coroutine[bytes | float, tuple[bytes, float], None]
"""What :func:`drive` resumes: it awaits :class:`Exchange`, :class:`Pause` and nothing else."""


class Incomplete(Exception):
    """The rest of the reply is still on its way."""


def command(*parts: str | int | bytes) -> bytes:
    """A command as Redis reads it."""
    return b"".join([b"*%d\r\n" % len(parts), *map(bulk, parts)])


def bulk(part: str | int | bytes) -> bytes:
    """One word of a command."""
    raw = part if isinstance(part, bytes) else str(part).encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def parse(reply: bytes) -> Any:
    """The one value that ``reply`` is: str, int, None or a list of such.

    :class:`Incomplete` when there is more to come; :class:`LoadTestError` when it is an error, or
    more than one value.
    """
    value, end = _parse(reply, 0)
    if end != len(reply):
        raise LoadTestError(f"Redis said more than was asked: {reply[end : end + 80]!r}")
    return value


def _parse(reply: bytes, start: int) -> tuple[Any, int]:
    line_end = reply.find(b"\r\n", start)
    if line_end < 0:
        raise Incomplete
    kind, line, end = reply[start : start + 1], reply[start + 1 : line_end], line_end + 2
    if kind == b"-":
        raise LoadTestError(f"Redis refused: {line.decode(errors='replace')}")
    if kind == b"+":
        return line.decode(), end
    count = int(line)
    if kind == b":":
        return count, end
    if count < 0:
        return None, end
    if kind == b"$":
        if len(reply) < end + count + 2:
            raise Incomplete
        return reply[end : end + count].decode(), end + count + 2
    values = []
    for _ in range(count):
        value, end = _parse(reply, end)
        values.append(value)
    return values, end


class Exchange:
    """Awaited: sends ``request`` and gives the first bytes of the reply and the seconds it took.

    An empty request only waits for more of the last reply; the seconds go on.
    """

    __slots__ = ("_request",)

    def __init__(self, request: bytes) -> None:
        self._request = request

    def __await__(self) -> Generator[bytes, tuple[bytes, float], tuple[bytes, float]]:
        return (yield self._request)


class Pause:
    """Awaited: for so many seconds nothing is asked on this connection."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __await__(self) -> Generator[float, tuple[bytes, float], None]:
        yield self._seconds


class WireCell(Cell):
    """A cell whose scripts run over :func:`drive`. ``took_s`` keeps how long each call took, by
    the script's name."""

    def __init__(self, name: str) -> None:
        # Never connected: it only knows the scripts' text and digest.
        super().__init__(Redis(), name)
        self.took_s: defaultdict[str, list[float]] = defaultdict(list)

    def load(self, connection: socket.socket) -> None:
        """Load every script, as the client library does before the first call."""
        for script in self._scripts.values():
            ask(connection, "SCRIPT", "LOAD", str(script.script))

    def encoded(self, script: str, *args: str | int) -> bytes:
        """A call, as it goes over the wire."""
        return command("EVALSHA", self._scripts[script].sha, 1, self.name, *args)

    async def run(self, script: str, *args: str | int) -> Any:
        reply, took_s = await Exchange(self.encoded(script, *args))
        while True:
            try:
                value = parse(reply)
            except Incomplete:
                more, took_s = await Exchange(b"")
                reply += more
            else:
                self.took_s[script].append(took_s)
                return value


async def send(requests: Iterator[bytes], took_s: list[float]) -> None:
    """One after the other, all of which are answered alike; adds how long each took.

    Reading every reply to the end would cost the client more than it costs Redis to make it. Here
    only one that does not have as many lines as the last is read: it may be incomplete.
    """
    lines = 0
    for request in requests:
        reply, reply_s = await Exchange(request)
        while reply.count(b"\r\n") != lines:
            try:
                parse(reply)
                lines = reply.count(b"\r\n")
            except Incomplete:
                more, reply_s = await Exchange(b"")
                reply += more
        if reply[:1] == b"-":
            parse(reply)
        took_s.append(reply_s)


def recorded(call: Coroutine[Any, Any, Any]) -> bytes:
    """The request that a call on a :class:`WireCell` begins with; it is not sent."""
    request: bytes = call.send(None)
    call.close()
    return request


def connect(url: str) -> socket.socket:
    """A connection to ``redis://:PASSWORD@HOST:PORT/…``; LoadTestError if it is refused."""
    at = urlsplit(url)
    try:
        opened = socket.create_connection((at.hostname, at.port or 6379), ANSWER_S_MAX)
    except OSError as error:
        raise LoadTestError(f"no Redis at {at.hostname}:{at.port}: {error}") from error
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if at.password:
        ask(opened, "AUTH", at.password)
    return opened


def ask(connection: socket.socket, *parts: str | int | bytes) -> Any:
    """The answer to one command."""
    connection.sendall(command(*parts))
    reply = b""
    while True:
        reply += _received(connection)
        try:
            return parse(reply)
        except Incomplete:
            continue


def info(connection: socket.socket, section: str) -> dict[str, str]:
    """A section of what the server says of itself."""
    lines = ask(connection, "INFO", section).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def drive(
    connections: Sequence[socket.socket], work: Sequence[Work], unread_s: list[float] | None = None
) -> float:
    """Run each of ``work`` on its connection, one request outstanding on each; the seconds it took.

    A reply's time is taken when it is read, before any coroutine goes on. With ``unread_s`` it is
    taken when the reply arrived, by the kernel: what one process computes for one connection is
    then no part of what the others waited. For how long each reply, or piece of one, lay there
    unread is added to ``unread_s``. Where the kernel does not say, both are the same.
    """
    receive = _read if unread_s is None else arrived
    clock = time.perf_counter if unread_s is None else time.time
    poll = select.poll()
    busy = {
        each.fileno(): (each, coroutine) for each, coroutine in zip(connections, work, strict=True)
    }
    sent_s: dict[int, float] = {}
    due: list[tuple[float, int]] = []

    def resume(number: int, got: tuple[bytes, float] | None) -> None:
        connection, coroutine = busy[number]
        try:
            # A coroutine that has not begun takes None, and so does one that paused.
            request = coroutine.send(got)  # type: ignore[arg-type]
        except StopIteration:
            poll.unregister(number)
            del busy[number]
            return
        if isinstance(request, float):
            heapq.heappush(due, (clock() + request, number))
        elif request:
            sent_s[number] = clock()
            connection.sendall(request)

    began = clock()
    for number in list(busy):
        if unread_s is not None and sys.platform == "linux":
            busy[number][0].setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        poll.register(number, select.POLLIN)
        resume(number, None)
    while busy:
        left_s = due[0][0] - clock() if due else ANSWER_S_MAX
        ready = poll.poll(max(0.0, 1000 * left_s))
        if not ready and not due:
            raise LoadTestError(f"Redis gave no answer in {ANSWER_S_MAX:g} s")
        replies = [(number, *receive(busy[number][0])) for number, _ in ready]
        for number, reply, got_s, read_s in replies:
            if unread_s is not None:
                unread_s.append(read_s - got_s)
            resume(number, (reply, got_s - sent_s[number]))
        while due and due[0][0] <= clock():
            resume(heapq.heappop(due)[1], None)
    return clock() - began


def _read(connection: socket.socket) -> tuple[bytes, float, float]:
    reply, read_s = _received(connection), time.perf_counter()
    return reply, read_s, read_s


def arrived(connection: socket.socket) -> tuple[bytes, float, float]:
    """A reply, when it arrived, and when it was read.

    The kernel begins to say so a moment after it was asked (SO_TIMESTAMPNS); what it received
    before counts as having arrived when it was read.
    """
    reply, said, _, _ = connection.recvmsg(CHUNK_BYTES, socket.CMSG_SPACE(STAMP.size))
    read_s = time.time()
    if not reply:
        raise LoadTestError("Redis closed the connection")
    for _, kind, data in said:
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = STAMP.unpack(data)
            return reply, seconds + nanoseconds / 1e9, read_s
    return reply, read_s, read_s


def _received(connection: socket.socket) -> bytes:
    reply = connection.recv(CHUNK_BYTES)
    if not reply:
        raise LoadTestError("Redis closed the connection")
    return reply
