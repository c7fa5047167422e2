"""Days of a time zone, as instants: where the windows of daily limits begin and end."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones


def require_zone(name: str) -> str:
    """``name``, if it is an IANA time zone that this machine knows; ValueError otherwise."""
    try:
        zone_of(name)
    except (KeyError, ValueError, OSError):
        if not available_timezones():
            raise ValueError("no time zone data here; install the package tzdata") from None
        raise ValueError(
            f"no time zone '{name[:64]}'; give an IANA name, such as UTC or Europe/Berlin"
        ) from None
    return name


def midnights_ms(zone_name: str, now_ms: int) -> list[int]:
    """The local midnights around ``now_ms``, ascending: two before or at it, two after it.

    All in ms since the epoch. A day has 23 or 25 hours when the clocks change. Where they are put
    forward at midnight, the day begins with its first instant; where midnight comes twice, with
    the first.
    """
    today = datetime.fromtimestamp(now_ms / 1000, zone_of(zone_name)).replace(
        hour=0, minute=0, second=0, microsecond=0, fold=0
    )
    # More than two on each side: a zone may leave out a date (Samoa in 2011), or its clocks may be
    # put back into the date before.
    begun = {int((today + timedelta(days=day)).timestamp()) * 1000 for day in range(-3, 5)}
    midnights = sorted(begun)
    after = bisect_right(midnights, now_ms)
    return midnights[after - 2 : after + 2]


def zone_of(name: str) -> tzinfo:
    """The time zone of that IANA name, which :func:`require_zone` let pass."""
    # Not from the database, so that the default works where there is none.
    return UTC if name == "UTC" else ZoneInfo(name)
