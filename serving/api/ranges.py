"""One ``Range`` header, RFC 9110 section 14."""

from __future__ import annotations

import re

SPAN = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")


class NotSatisfiable(Exception):
    """The range lies outside the file: answer 416."""


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """(start, end exclusive) to send, or None for the whole file.

    What we do not understand, several ranges included, is ignored, as the RFC allows.
    """
    match = SPAN.match(header.replace(" ", "")) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        length = min(int(last), size_bytes)
        if length == 0:
            raise NotSatisfiable
        return size_bytes - length, size_bytes
    start = int(first)
    if start >= size_bytes:
        raise NotSatisfiable
    if not last:
        return start, size_bytes
    if int(last) < start:
        return None
    return start, min(int(last) + 1, size_bytes)
