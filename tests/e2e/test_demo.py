"""``make demo`` does, and checks, what the README says of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.stacks import clean_env

ROOT = Path(__file__).parents[2]


def test_the_demo_makes_a_clip_buys_credits_and_skips_the_line(tmp_path: Path) -> None:
    out = tmp_path / "demo.mp4"
    done = subprocess.run(
        [sys.executable, "-m", "deployments.demo", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
        env={**clean_env(), "REELSERVE_REDIS_URL": "redis://127.0.0.1:1"},  # of no concern to it
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.read_bytes()[4:8] == b"ftyp"
    said = re.sub(r"\s+", " ", done.stdout)
    assert "a checker sees a red ball moving right on a white background" in said
    price = re.search(r"refused: This clip costs (\d+) credits, and you have 0\.", said)
    assert price is not None, said
    assert re.search(r"buys '10 extra generations': 40 credits for 4\.00 usd", said)
    waiting = re.search(r"(\d) standard jobs of others wait", said)
    assert waiting is not None
    order = re.findall(r"\d (\w+) (?:burst|standard) (?:credits|allowance) \d", said)
    assert len(order) - order.index("ann") - 1 >= int(waiting[1]) > 1
    for entry in ("grant purchase +40 +0", f"hold -{price[1]} +{price[1]}"):
        assert entry in said
    assert f"capture +0 -{price[1]}" in said
    assert f"a balance of {40 - int(price[1])} credits" in said
