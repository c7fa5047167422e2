"""A collector of traces: OTLP over HTTP, as a real one takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class Seen:
    """A span that arrived. Times are seconds since the epoch; ``of`` is who sent it; attributes are
    without our prefix."""

    name: str
    id: str
    parent: str
    trace: str
    kind: str
    start_s: float
    end_s: float
    failed: bool
    error: str
    of: Mapping[str, str]
    attributes: Mapping[str, str | int | float]


@dataclass
class Collector:
    """What arrived at ``url``, in the order of their starts."""

    url: str
    headers: list[Mapping[str, str]] = field(default_factory=list)
    received: list[Seen] = field(default_factory=list)

    @property
    def spans(self) -> list[Seen]:
        return sorted(self.received, key=lambda span: span.start_s)

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Seen:
        (span,) = self.named(name)
        return span

    def children(self, of: Seen) -> list[Seen]:
        return [span for span in self.spans if span.parent == of.id]


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector on this port, or on a free one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                collector.headers.append(dict(self.headers))
                collector.received += _seen(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, name="collector")
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def _seen(request: ExportTraceServiceRequest) -> Iterator[Seen]:
    for batch in request.resource_spans:
        of = {each.key: each.value.string_value for each in batch.resource.attributes}
        for scope in batch.scope_spans:
            for span in scope.spans:
                yield _of(span, of)


def _of(span: ProtoSpan, of: Mapping[str, str]) -> Seen:
    attributes: dict[str, str | int | float] = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        assert kind is not None
        attributes[each.key.removeprefix("reelserve.")] = getattr(each.value, kind)
    return Seen(
        name=span.name,
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        trace=span.trace_id.hex(),
        kind=ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start_s=span.start_time_unix_nano / 1e9,
        end_s=span.end_time_unix_nano / 1e9,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        error=span.status.message,
        of=of,
        attributes=attributes,
    )
