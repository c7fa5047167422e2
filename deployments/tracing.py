"""Traces are off unless a setting says otherwise: then nothing is loaded or recorded for them."""

from __future__ import annotations

from deployments.settings import StackSettings
from serving.plan.errors import ConfigError
from serving.tracing import NO_TRACER, Tracer


def open_tracer(settings: StackSettings, role: str, replica: str) -> Tracer:
    """The tracer of this process. It is to be closed.

    Raises :class:`ConfigError` if what it needs is not installed.
    """
    if settings.traces == "off":
        return NO_TRACER
    try:
        from deployments.otlp import OtlpTracer
    except ImportError as error:
        raise ConfigError(
            f"REELSERVE_TRACES={settings.traces} needs the extra 'traces' ({error}): "
            "pip install 'reelserve[traces]'"
        ) from error
    return OtlpTracer(role, replica, settings.traces_ratio)


def check_traces(settings: StackSettings) -> None:
    """:class:`ConfigError` if replicas could not open their tracers."""
    open_tracer(settings, "check", "").close()
