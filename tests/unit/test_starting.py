"""For how long a replica's process has lived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deployments.starting import process_age_s

SCRIPT = """
import time
time.sleep(0.5)
from deployments.starting import process_age_s
print(process_age_s())
"""


def test_the_age_of_a_process_counts_from_its_own_start() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert 0.5 <= float(printed) <= process_age_s()
