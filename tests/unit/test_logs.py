"""What a replica says is where an operator finds it."""

from __future__ import annotations

import subprocess
import sys

SAYS = """
import logging
from deployments.ingress import Ingress
Ingress([])
logging.getLogger("quota.payments.payments").info("evt_1 is of another cell")
logging.getLogger("httpx").info("HTTP Request: GET https://api.example/?key=secret")
logging.getLogger("redis").warning("away")
"""


def test_an_ingress_says_what_it_did_and_of_others_only_what_is_wrong() -> None:
    """In a process of its own, as Ray starts it: here, pytest listens."""
    done = subprocess.run(
        [sys.executable, "-c", SAYS], capture_output=True, text=True, timeout=60, check=True
    )
    said = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]
    assert said == [
        "INFO quota.payments.payments: evt_1 is of another cell",
        "WARNING redis: away",
    ]
