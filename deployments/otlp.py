"""Spans for real: recorded by OpenTelemetry's SDK, sent over OTLP to a collector.

Where that is, its headers and time-outs are OpenTelemetry's own variables
(``OTEL_EXPORTER_OTLP_…``), and so are the bounds of the queue in which ended spans wait
(``OTEL_BSP_…``, 2048 of them). Who ends a span never waits: a thread sends them, and what it
cannot send is dropped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from threading import Thread, local

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving import context
from serving.tracing import NO_ATTRIBUTES, NO_SPAN, Attributes, Span

log = logging.getLogger(__name__)

CLOSE_S_MAX = 3.0
"""A drain does not wait longer for a collector."""
PREFIX = "reelserve."
SENDER = OTLPSpanExporter.__module__
QUEUE = "opentelemetry.sdk._shared_internal"

_w3c = TraceContextTextMapPropagator()


class OtlpSpan:
    """A :class:`serving.tracing.Span` that is recorded, or at least has a name for the logs."""

    def __init__(self, span: OtelSpan) -> None:
        self.otel = span

    @property
    def traceparent(self) -> str:
        carrier: dict[str, str] = {}
        if self.otel.is_recording():
            _w3c.inject(carrier, set_span_in_context(self.otel))
        return carrier.get("traceparent", "")

    @property
    def ids(self) -> context.Ids:
        named = self.otel.get_span_context()
        return {"trace_id": f"{named.trace_id:032x}", "span_id": f"{named.span_id:016x}"}

    def set(self, attributes: Attributes) -> None:
        self.otel.set_attributes(_prefixed(attributes))

    def end(self, *, error: str = "", at_ms: float | None = None) -> None:
        if not self.otel.is_recording():
            return
        if error:
            self.otel.set_status(Status(StatusCode.ERROR, error))
        self.otel.end(_nanoseconds(at_ms))


class OtlpTracer:
    """The :class:`serving.tracing.Tracer` of one process.

    ``ratio`` of the requests that bring no trace of their own begin one. It is no global provider:
    what others record in this process is theirs.
    """

    def __init__(self, role: str, replica: str, ratio: float) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create(_resource(role, replica)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(Patient(OTLPSpanExporter())))
        self._tracer = self._provider.get_tracer("reelserve", version("reelserve"))

    def request(self, name: str, traceparent: str) -> Span:
        parent = _w3c.extract({"traceparent": traceparent} if traceparent else {})
        return OtlpSpan(self._tracer.start_span(name, parent, kind=SpanKind.SERVER))

    def under(
        self,
        parent: Span | str,
        name: str,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        at_ms: float | None = None,
    ) -> Span:
        if isinstance(parent, OtlpSpan):
            around, kind = set_span_in_context(parent.otel), SpanKind.INTERNAL
        elif isinstance(parent, str) and parent:
            around, kind = _w3c.extract({"traceparent": parent}), SpanKind.CONSUMER
        else:
            return NO_SPAN
        prefixed = _prefixed(attributes)
        start = _nanoseconds(at_ms)
        return OtlpSpan(
            self._tracer.start_span(name, around, kind, attributes=prefixed, start_time=start)
        )

    def close(self) -> None:
        # The SDK's own patience is half a minute, longer than a drain may have.
        closing = Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S_MAX)


class _FirstWords(local):
    """A filter that keeps what a logger says first on this thread, which is the reason, and lets
    nothing of it through."""

    text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.text = self.text or record.getMessage()
        return False


_said = _FirstWords()


class Patient(SpanExporter):
    """Drops what its exporter cannot send, and says so once until it can again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        # A line or two for each batch or span, for as long as it lasts.
        logging.getLogger(SENDER).addFilter(_said)
        logging.getLogger(QUEUE).setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _said.text = ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            result, _said.text = SpanExportResult.FAILURE, repr(error)
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            log.warning("spans are dropped until the collector takes them: %s", _said.text)
        elif self._away and not away:
            log.info("the collector takes spans again")
        self._away = away
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _resource(role: str, replica: str) -> dict[str, str]:
    described = {"service.instance.id": replica, "service.version": version("reelserve")}
    if "OTEL_SERVICE_NAME" not in os.environ:
        described["service.name"] = f"reelserve-{role}"
    return described


def _prefixed(attributes: Attributes) -> dict[str, str | int | float]:
    return {PREFIX + name: value for name, value in attributes.items()}


def _nanoseconds(ms: float | None) -> int | None:
    return None if ms is None else round(1e6 * ms)
