"""Prometheus looks at a cell once, however many ingress pods answer for it."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.manifests import named, overlay
from tests.prometheus import prometheus


def test_all_pods_of_the_ingress_are_one_target(tmp_path: Path) -> None:
    monitor = named(overlay("production"), "ServiceMonitor", "reelserve")
    (endpoint,) = monitor["spec"]["endpoints"]
    # As the operator writes them down for Prometheus.
    relabelings = [
        {re.sub("[A-Z]", lambda it: f"_{it[0].lower()}", name): value for name, value in it.items()}
        for it in endpoint["relabelings"]
    ]
    # What the operator adds before: of each pod its own.
    of_the_pod = {"source_labels": ["__address__"], "target_label": "pod"}
    pods = ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]
    with prometheus(tmp_path, {"reelserve": pods}, [of_the_pod, *relabelings]) as running:
        deadline = time.monotonic() + 30
        while not (found := running.targets()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert found == ["http://reelserve-serve-svc:8000/metrics"]
