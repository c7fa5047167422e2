"""The same submission again: how it is recognised, by its key or by what it asks for."""

from __future__ import annotations

import hashlib
import json
import re

from fastapi import Request
from pydantic import BaseModel

from quota.settings import QuotaSettings
from serving.jobs import Wish
from serving.plan.classes import ServiceTier
from serving.plan.errors import InvalidRequest

KEY_HEADER = "idempotency-key"
REPLAYED_HEADER = "idempotent-replayed"
KEY = re.compile(r"[!-~]{1,255}")
KEY_DOCS = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "the same request under the same key is made once in 24 hours",
}
"""For OpenAPI: the framework cannot see a header that is read here."""
RETRIES_HEADER = "x-stainless-retry-count"
"""The official SDKs send no key. This header counts how often they sent a request before."""


def wish_of(
    request: Request,
    fields: BaseModel,
    service_tier: ServiceTier,
    max_credits: int | None,
    quota: QuotaSettings,
) -> Wish:
    """What the headers and the parsed body say of a submission. :class:`InvalidRequest` for a key
    that is none."""
    key = key_of(request)
    return Wish(
        service_tier=service_tier,
        max_credits=max_credits,
        body_sha256=_digest(request, fields),
        idempotency_key=key,
        # Whoever names requests tells equal ones apart.
        retried=key is None and _retries(request) > 0,
        idempotency_s=quota.idempotency_s,
        retry_window_s=quota.retry_window_s,
    )


def key_of(request: Request) -> str | None:
    """The key it came under; :class:`InvalidRequest` for one that is none."""
    given = request.headers.getlist(KEY_HEADER)
    if not given:
        return None
    if len(given) > 1 or not KEY.fullmatch(given[0]):
        raise InvalidRequest(
            "The header Idempotency-Key must be given once and be 1 to 255 visible ASCII "
            "characters, without spaces; a UUID is a good one.",
            code="invalid_idempotency_key",
            param="Idempotency-Key",
        )
    return given[0]


def _retries(request: Request) -> int:
    count = request.headers.get(RETRIES_HEADER, "")
    return int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0


def _digest(request: Request, fields: BaseModel) -> str:
    """Of what is asked for and where, however it was written: as JSON or as a form, in any order.

    A field left at its default is as good as absent, so that one that a new version adds changes
    no digest.
    """
    said = fields.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps([request.method, request.url.path, said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
