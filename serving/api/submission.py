"""What a submission tells of itself: its span, which its job's spans go under, and a log line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

from serving import context
from serving.jobs import Admission
from serving.plan.errors import ReelserveError
from serving.tracing import Span, Tracer

log = logging.getLogger(__name__)

TRACEPARENT = "traceparent"


@contextmanager
def submission(tracer: Tracer, request: Request) -> Iterator[Span]:
    """The span around a submission, in the trace that the request names in ``traceparent``.

    What the caller can mend is a refusal, and no error of ours.
    """
    span = tracer.request("submit", request.headers.get(TRACEPARENT, ""))
    span.set({"request_id": str(context.ids().get("request_id", ""))})
    try:
        with context.bound(**span.ids):
            yield span
    except ReelserveError as error:
        span.set({"outcome": "refused", "code": error.code})
        span.end(error=error.code if error.status >= 500 else "")
        raise
    except BaseException as error:
        span.end(error=type(error).__name__)
        raise
    span.end()


def decided(span: Span, admission: Admission) -> None:
    """The job is in the queue, or was there before."""
    job = admission.job
    outcome = "replayed" if admission.replayed else "accepted"
    span.set({"outcome": outcome})
    if job is not None:
        context.bind(job_id=job.id)
        span.set({"job_id": job.id, "model": job.pool, "class": job.service_class})
        log.info("%s: %s, %s", outcome, job.pool, job.service_class)
