"""Spans as whoever makes them sees them. Without tracing they are nothing at all.

A trace begins with a submission, and a job carries the name of that span, its ``traceparent`` (W3C
Trace Context), so that whoever runs the job goes on in the same trace. What records spans is chosen
where processes are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from serving import context

Attributes = Mapping[str, str | int | float]
NO_ATTRIBUTES: Attributes = {}


class Span(Protocol):
    """One piece of work, from when it was made to its :meth:`end`. Times are milliseconds since the
    epoch."""

    @property
    def traceparent(self) -> str:
        """What others may go on from; empty if the span is not recorded."""

    @property
    def ids(self) -> context.Ids:
        """For log lines: ``trace_id`` and ``span_id``."""

    def set(self, attributes: Attributes) -> None: ...

    def end(self, *, error: str = "", at_ms: float | None = None) -> None:
        """``error`` says in a word what went wrong. What was ended stays as it is."""


class Tracer(Protocol):
    """Makes spans. Nothing here blocks or raises."""

    def request(self, name: str, traceparent: str) -> Span:
        """A span of work that came from outside, in the trace that it came with, if any."""

    def under(
        self,
        parent: Span | str,
        name: str,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        at_ms: float | None = None,
    ) -> Span:
        """A part of ``parent``, a span or its ``traceparent``; recorded if that is."""

    def close(self) -> None:
        """Send what is left to send, within a few seconds. Called once, when all work has ended."""


class _NoSpan:
    traceparent = ""
    ids = context.NO_IDS

    def set(self, attributes: Attributes) -> None:
        pass

    def end(self, *, error: str = "", at_ms: float | None = None) -> None:
        pass


class _NoTracer:
    def request(self, name: str, traceparent: str) -> Span:
        return NO_SPAN

    def under(
        self,
        parent: Span | str,
        name: str,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        at_ms: float | None = None,
    ) -> Span:
        return NO_SPAN

    def close(self) -> None:
        pass


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()
