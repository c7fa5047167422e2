"""Traces cost nothing unless somebody wants them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deployments.settings import StackSettings
from deployments.tracing import open_tracer
from serving.tracing import NO_SPAN, NO_TRACER

REPLICA = """
import sys
from deployments import connections, ingress, replica, stack, worker
from deployments.settings import StackSettings
from deployments.tracing import check_traces, open_tracer
open_tracer(StackSettings(), "ingress", "i1").close()
print([name for name in sys.modules if name.startswith(LOADED)])
"""
WITHOUT_THE_EXTRA = """
import sys
sys.modules["opentelemetry.exporter.otlp.proto.http.trace_exporter"] = None
from deployments.settings import StackSettings
from deployments.tracing import check_traces
from serving.plan.errors import ConfigError
try:
    check_traces(StackSettings(traces="otlp"))
except ConfigError as error:
    print(error)
"""


def said(program: str) -> str:
    """In a process of its own, which has loaded nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_off_loads_nothing_for_them() -> None:
    # Ray loads OpenTelemetry's metrics for itself.
    loaded = ("deployments.otlp", "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp")
    assert said(REPLICA.replace("LOADED", repr(loaded))) == "[]"


def test_off_makes_no_span() -> None:
    tracer = open_tracer(StackSettings(), "ingress", "i1")
    assert tracer is NO_TRACER
    span = tracer.request("submit", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert span is tracer.under(span, "queue") is NO_SPAN
    assert (span.traceparent, dict(span.ids)) == ("", {})


def test_on_without_the_extra_says_what_to_install() -> None:
    assert "pip install 'reelserve[traces]'" in said(WITHOUT_THE_EXTRA)


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_a_ratio_is_a_part(ratio: float) -> None:
    with pytest.raises(ValueError, match="traces_ratio"):
        StackSettings(traces_ratio=ratio)
