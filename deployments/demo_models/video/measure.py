"""``python -m deployments.demo_models.video.measure``: does the demo model show what was asked?

Every combination that was held out of training is asked for through the API of a stack (one that it
starts, or ``--url``), at the model's defaults, and the clips are downloaded and looked at by the
checker. First frames and remixes have no route yet, so they are made by the engine in this process.
``--sheet`` writes a picture of what was made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from deployments.demo_models.install import WEIGHTS
from deployments.demo_models.video.checker import frames_of, see
from deployments.demo_models.video.studio import Studio
from deployments.demo_models.video.world import COLOURS, Clip, Scene, Take, caption, render, scenes
from deployments.settings import StackSettings
from serving.models.family import Frames, Inputs
from serving.plan.catalog import Model

TOGETHER = 8
STRENGTHS = (0.5, 0.6, 0.7)
KEEPS_FRAME = 20.0
"""Mean distance of RGB values from the given frame, up to which it was kept."""
SHEET_COLUMNS, SHEET_ROWS = 5, 6


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.demo_models.video.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="of a server; without it, one is started")
    parser.add_argument("--key", help="for that server")
    parser.add_argument("--model", default="demo-wan")
    parser.add_argument(
        "--models-dir", type=Path, default=WEIGHTS, help="of first frames and remixes"
    )
    parser.add_argument("--count", type=int, help="scenes (default: all that were held out)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--words", action="store_true", help="ask in synonyms, not plainly")
    parser.add_argument("--only", choices=("text", "first-frame", "remix"), action="append")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the clips (PNG)")
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    chosen = list(scenes(held_out=True))
    chance.shuffle(chosen)
    chosen = chosen[: arguments.count]
    parts = arguments.only or ["text", "first-frame", "remix"]
    result: dict[str, object] = {"scenes": len(chosen), "seed": arguments.seed}
    if "text" in parts:
        with _server(arguments.url, arguments.key) as (url, key):
            draw = chance if arguments.words else None
            found, clips = _through_api(url, key, arguments.model, chosen, draw)
        result["text"] = found
        if arguments.sheet:
            _write_sheet(arguments.sheet, clips)
    if {"first-frame", "remix"} & set(parts):
        model = StackSettings.load().catalog().models[arguments.model]
        with Studio(model, arguments.models_dir) as studio:
            if "first-frame" in parts:
                result["first_frame"] = first_frames(studio, chosen, arguments.seed)
            if "remix" in parts:
                result["remix"] = remixes(studio, chosen, arguments.seed)
    print(json.dumps(result, indent=2) if arguments.json else _table(result))


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# Text, through the API.


@contextmanager
def _server(url: str | None, key: str | None) -> Iterator[tuple[str, str | None]]:
    if url:
        yield url, key
        return
    from deployments.stack import LocalStack

    with tempfile.TemporaryDirectory() as folder:
        tiers = Path(folder) / "tiers.yaml"
        tiers.write_text("default_tier: unlimited\ntiers: {unlimited: {}}\n")
        os.environ["REELSERVE_QUOTA_TIERS_FILE"] = str(tiers)
        settings = StackSettings.load(data_dir=Path(folder), port=0)
        with LocalStack(settings, tell) as stack:
            yield stack.url, stack.api_key


def _through_api(
    url: str, key: str | None, model: str, chosen: list[Scene], draw: random.Random | None
) -> tuple[dict[str, float], list[tuple[Scene, Frames]]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    clips: list[tuple[Scene, Frames]] = []
    waiting: dict[str, Scene] = {}
    todo = list(enumerate(chosen))
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=60) as client:
        while todo or waiting:
            while todo and len(waiting) < TOGETHER:
                number, scene = todo.pop(0)
                body = {"model": model, "prompt": caption(scene, draw), "seed": number}
                made = client.post("/videos", json=body).raise_for_status().json()
                waiting[made["id"]] = scene
            for video_id in list(waiting):
                video = client.get(f"/videos/{video_id}").raise_for_status().json()
                if video["status"] in ("failed", "cancelled", "expired"):
                    raise SystemExit(f"{video_id} {video['status']}: {video['error']}")
                if video["status"] == "completed":
                    content = client.get(f"/videos/{video_id}/content").raise_for_status()
                    clips.append((waiting.pop(video_id), frames_of(content.content)))
                    if len(clips) % 20 == 0:
                        tell(f"{len(clips)} of {len(chosen)} clips")
            time.sleep(0.1)
    return _shares([see(frames).right(scene) for scene, frames in clips]), clips


def _shares(rights: list[dict[str, bool]]) -> dict[str, float]:
    return {name: round(float(np.mean([each[name] for each in rights])), 4) for name in rights[0]}


# First frames and remixes, in this process.


def first_frames(studio: Studio, chosen: list[Scene], seed: int) -> dict[str, float]:
    """A frame of the scene is given, and the caption says how it moves."""
    rights = []
    for number, scene, _, first in _rendered(studio.model, chosen, seed):
        made = studio.make(studio.spec(caption(scene), number), Inputs(first_frame=first))
        kept = float(np.abs(made[0].astype(float) - first).mean()) < KEEPS_FRAME
        rights.append({"kept": kept, "motion": see(made).motion == scene.motion})
    return _shares([{**each, "both": all(each.values())} for each in rights])


def remixes(
    studio: Studio, chosen: list[Scene], seed: int, strengths: Sequence[float] = STRENGTHS
) -> dict[str, dict[str, float]]:
    """A clip of the scene is given, and the caption asks for it in another colour."""
    rights: dict[float, list[dict[str, bool]]] = {strength: [] for strength in strengths}
    for number, scene, video, _ in _rendered(studio.model, chosen, seed):
        colour = random.Random(number).choice([name for name in COLOURS if name != scene.colour])
        other = Scene(colour, scene.shape, scene.motion, scene.background)
        for strength, found in rights.items():
            inputs = Inputs(video=video, strength=strength)
            made = studio.make(studio.spec(caption(other), number), inputs)
            found.append(see(made).right(other))
    return {str(strength): _shares(found) for strength, found in rights.items()}


def _rendered(
    model: Model, chosen: list[Scene], seed: int
) -> Iterator[tuple[int, Scene, Frames, Frames]]:
    """Each scene as the world draws it: its number, itself, the clip and its first frame."""
    spec_frames = model.video.seconds[0] * model.video.fps.default
    width, height = model.video.render_size(next(iter(model.video.sizes)))
    chance = random.Random(f"measure {seed}")
    for number, scene in enumerate(chosen):
        pixels = render([Clip(scene, Take.drawn(chance))], spec_frames, height, width)[0]
        video = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
        yield number, scene, video, video[0]
        if (number + 1) % 20 == 0:
            tell(f"{number + 1} of {len(chosen)}")


# What is shown of it.


def _write_sheet(path: Path, clips: list[tuple[Scene, Frames]]) -> None:
    """Five frames of each of the first clips, one clip a row, two columns of clips."""
    rows = []
    for _, frames in clips[: 2 * SHEET_ROWS]:
        picked = np.linspace(0, len(frames) - 1, SHEET_COLUMNS).round().astype(int)
        rows.append(
            np.concatenate(
                [np.pad(frames[i], ((1, 1), (1, 1), (0, 0)), constant_values=200) for i in picked],
                axis=1,
            )
        )
    gap = np.full((rows[0].shape[0], 8, 3), 255, np.uint8)
    halves = [np.concatenate(rows[half::2]) for half in (0, 1)]
    gap = np.full((halves[0].shape[0], 8, 3), 255, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([halves[0], gap, halves[1]], axis=1)).save(path, optimize=True)
    tell(f"{path}: " + "; ".join(caption(scene) for scene, _ in clips[: 2 * SHEET_ROWS]))


def _table(result: Mapping[str, object]) -> str:
    lines = [f"{result['scenes']} scenes that were held out of training, seed {result['seed']}"]
    for part in ("text", "first_frame", "remix"):
        found = result.get(part)
        if isinstance(found, dict):
            nested = found if part == "remix" else {"": found}
            for name, shares in nested.items():
                title = f"{part} {name}".strip().replace("_", " ")
                listed = ", ".join(f"{what} {share:.1%}" for what, share in shares.items())
                lines.append(f"{title}: {listed}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
