"""One text on its way to a listener: sentences to sound, the lease it is made under, its end."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

from serving.jobs import InlineLease, InlineLeases
from serving.media import CODECS, AudioEncoder
from serving.plan.errors import GenerationError, ReelserveError, ServiceUnavailable, StaleLease
from serving.plan.speech import SILENT_S_MAX, Speaker
from serving.plan.speech_spec import SpeechSpec

log = logging.getLogger(__name__)

FIRST_PIECE_S, PIECE_S = 0.1, 1.0
"""So much sound is encoded at a time: a little at first, so that it is heard at once."""
RENEWALS = 3
"""In the time of a lease."""
CANCEL_AGAIN_S = 1.0
SETTLE_TRIES, SETTLE_S = 20, 0.5
"""While Redis is away. After that the lease lapses, and nothing is paid."""


class SpeechWork:
    """Makes it, and sees to the lease. :meth:`begin` once, then :meth:`pieces` to its end, and one
    of :meth:`completed`, :meth:`left` and :meth:`failed`, however it went. ``events``: whether the
    bytes go into server-sent events."""

    def __init__(
        self,
        leases: InlineLeases,
        lease: InlineLease,
        speaker: Speaker,
        spec: SpeechSpec,
        *,
        events: bool,
    ) -> None:
        self.lease, self.events = lease, events
        self._leases, self._spec = leases, spec
        self._spoken = speaker.speak(spec.sentences, spec.voice, spec.speed, spec.instructions)
        self._rate_hz = speaker.sample_rate_hz
        self._tempo = spec.speed / speaker.spoken_speed(spec.speed)
        self._encoder: AudioEncoder | None = None
        self._first = b""
        self._spent_s = 0.0
        self._made = 0
        self._waits_since_s: float | None = None
        self._sent = asyncio.Event()

    @property
    def media_type(self) -> str:
        return "text/event-stream" if self.events else CODECS[self._spec.audio_format].media_type

    async def begin(self) -> None:
        """Have the first sentence made, so that what goes wrong is still an error with a status.
        Then it is settled already."""
        keeping = asyncio.create_task(self.keep(), name="speech-lease")
        try:
            self._encoder = AudioEncoder(
                self._spec.audio_format,
                self._rate_hz,
                tempo=self._tempo,
                loudness_lufs=self._spec.loudness_lufs,
            )
            self._first = await self._next_sentence() or b""
        except Exception as error:
            await self.failed(error)
            await self.close()
            raise
        finally:
            await ended(keeping)

    async def pieces(self) -> AsyncIterator[bytes]:
        """What goes over the wire, in order. Whoever asks for the next one has sent the last."""
        sentence: bytes | None = self._first
        encoder = self._encoder
        if encoder is None:
            raise RuntimeError("it has not begun")
        while sentence is not None:
            self._made += 1
            for piece in self._cut(sentence):
                if made := await _uncut(encoder.encode, piece):
                    yield self._wired(made)
                    self._sent.set()
            sentence = await self._next_sentence()
        if made := await _uncut(encoder.finish):
            yield self._wired(made)
        if self.events:
            yield _event({"type": "speech.audio.done", "usage": self._usage()})

    async def keep(self) -> None:
        """Renew the lease for as long as it gets on, or its listener is slow: until cancelled, or
        with :class:`StaleLease`. The first time is when it was first heard."""
        every_s = self._leases.lease_s / RENEWALS
        while True:
            if self._sent.is_set():
                await asyncio.sleep(every_s)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await self._sent.wait()
            since_s = self._waits_since_s
            if since_s is None or time.monotonic() - since_s < SILENT_S_MAX:
                try:
                    await self._renew()
                except ServiceUnavailable as error:
                    log.warning("a lease is not renewed yet: %s", error)

    async def completed(self) -> None:
        """All of it was sent."""
        usage = self._usage()
        await self._settle(
            lambda: self._leases.complete(self.lease, usage, spent_ms=self._spent_ms)
        )

    async def left(self) -> None:
        """Its listener is gone, and pays for the sentences that were made to be sent."""
        made = 1 - self._spec.left_share(self._made)
        await self._settle(
            lambda: self._leases.left(self.lease, made=made, spent_ms=self._spent_ms)
        )

    async def failed(self, error: BaseException) -> None:
        """It cannot be made any further; nothing of it is paid."""
        if isinstance(error, ReelserveError):
            why = GenerationError(error.message, code=error.code)
        else:
            why = GenerationError("Something went wrong while it was spoken.")
        await self._settle(lambda: self._leases.fail(self.lease, why, spent_ms=self._spent_ms))

    async def close(self) -> None:
        """Let go of the engine, wherever it is."""
        if isinstance(self._spoken, AsyncGenerator):
            await self._spoken.aclose()
        if self._encoder is not None:
            self._encoder.close()

    @property
    def _spent_ms(self) -> int:
        return max(1, round(1000 * self._spent_s))

    def _usage(self) -> dict[str, float]:
        seconds = self._encoder.seconds if self._encoder is not None else 0.0
        return {"characters": len(self._spec.input), "seconds": round(seconds, 3)}

    async def _next_sentence(self) -> bytes | None:
        self._waits_since_s = began_s = time.monotonic()
        try:
            return await anext(self._spoken, None)
        finally:
            self._waits_since_s = None
            self._spent_s += time.monotonic() - began_s

    def _cut(self, pcm: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(pcm):
            seconds = PIECE_S if self._sent.is_set() else FIRST_PIECE_S
            size = 2 * round(seconds * self._rate_hz)
            yield pcm[at : at + size]
            at += size

    def _wired(self, data: bytes) -> bytes:
        if not self.events:
            return data
        audio = base64.b64encode(data).decode()
        return _event({"type": "speech.audio.delta", "audio": audio})

    async def _renew(self) -> None:
        left = self._spec.left_share(self._made)
        await self._leases.renew(
            self.lease,
            spent_ms=self._spent_ms,
            step=self._made if self._sent.is_set() else 0,
            remaining_ms=round(left * self._spent_ms),
        )

    async def _settle(self, write: Callable[[], Awaitable[None]]) -> None:
        for tried in range(SETTLE_TRIES):
            try:
                return await write()
            except StaleLease as error:
                log.warning("%s is not ours to end any more: %s", self.lease.id, error)
                return None
            except ServiceUnavailable as error:
                log.warning("the end of %s is not recorded yet: %s", self.lease.id, error)
                await asyncio.sleep(SETTLE_S if tried else 0)
        log.error("the end of %s was not recorded: its lease lapses", self.lease.id)
        return None


async def ended(*tasks: asyncio.Task[None]) -> None:
    """Cancel these until they have ended: a client library may swallow a cancellation that comes at
    the moment when what it waits for is there."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


async def _uncut(encode: Callable[..., bytes], *args: bytes) -> bytes:
    """On a thread, which has ended when this has, however that ends: the encoder is not to be let
    go of while it works."""
    working = asyncio.create_task(asyncio.to_thread(encode, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


def _event(data: dict[str, object]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def error_event(error: ReelserveError) -> bytes:
    """What stands in a stream of events that cannot go on."""
    return _event({"type": "error", "error": {"code": error.code, "message": error.message}})
