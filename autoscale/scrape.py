"""Reads metrics, of the ingress and of Triton servers, where there is no Prometheus to do it."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping

import httpx

from autoscale.signals import Reading, from_text

log = logging.getLogger(__name__)

EVERY_S = 2.0
FRESH_S = 15.0
TIMEOUT_S = 5.0


class Scraper:
    """Keeps the readings of one exporter fresh, on a thread that ends with it."""

    def __init__(self, url: str) -> None:
        self._latest = _Latest()
        threading.Thread(
            target=_scrape_forever, args=(url, self._latest), name="autoscale-scrape", daemon=True
        ).start()
        weakref.finalize(self, self._latest.stop.set)

    @property
    def readings(self) -> Mapping[str, Reading] | None:
        """None when nothing was read lately. Never waits."""
        at, readings = self._latest.value
        return readings if time.monotonic() - at <= FRESH_S else None


class _Latest:
    """What the thread shares with its owner, which it must not keep alive."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.value: tuple[float, Mapping[str, Reading] | None] = (0.0, None)


def _scrape_forever(url: str, latest: _Latest) -> None:
    silent = False
    # A proxy is for what is elsewhere.
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        while not latest.stop.is_set():
            began = time.monotonic()
            try:
                answer = client.get(url)
                answer.raise_for_status()
                latest.value = began, from_text(answer.text, time.time())
                silent = False
            except (httpx.HTTPError, ValueError) as error:
                if not silent:
                    log.warning("no metrics from %s: %s", url, error or type(error).__name__)
                silent = True
            latest.stop.wait(EVERY_S)
