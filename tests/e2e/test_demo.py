"""``make demo`` does, and checks, what the README says of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.e2e.stacks import Stack, clean_env

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
    price = re.search(r"refused: This costs (\d+) credits, and you have 0\.", said)
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


def test_how_good_the_demo_model_is_is_measured_through_the_api(
    stack: Stack, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    command = ["deployments.demo_models.video.measure", "--url", stack.url, "--key", stack.api_key]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *command,
            "--only",
            "text",
            "--count",
            "4",
            "--json",
            "--sheet",
            str(sheet),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["scenes"] == 4
    # One of four may go wrong.
    assert found["text"]["background"] >= 0.75
    assert found["text"]["colour"] >= 0.75
    with Image.open(sheet) as picture:
        assert picture.size == (2 * 5 * 98 + 8, 2 * 98)
