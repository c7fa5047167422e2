"""Users of a running stack: most make clips, some look around.

``reelserve loadtest steady`` runs them; or locust itself, with its own page and options::

    locust -f loadtest/locustfile.py

Environment: REELSERVE_URL (default http://127.0.0.1:8000), REELSERVE_API_KEY.
"""

from __future__ import annotations

import os
import random
import time
from http import HTTPStatus
from typing import Any

from locust import FastHttpUser, between, task
from locust.contrib.fasthttp import FastResponse

URL = os.environ.get("REELSERVE_URL", "").strip() or "http://127.0.0.1:8000"
AUTHORIZATION = {"authorization": f"Bearer {os.environ.get('REELSERVE_API_KEY', '').strip()}"}

POLL_AFTER = "openai-poll-after-ms"
POLL_MS_DEFAULT = 1000
"""What the OpenAI SDK takes when the server names no interval."""
JOB_S_MAX = 120.0
RETRY_AFTER_S_MAX = 30.0
STEPS = 4
SEED_MAX = 2**31
PROMPTS = ("a red ball moving right", "rain on a window", "a slow dawn over the sea")

SUBMIT, REFUSED = "/v1/videos", "/v1/videos, refused with 429"
POLL, DOWNLOAD, LIST, MODELS = (
    "/v1/videos/ID",
    "/v1/videos/ID/content",
    "/v1/videos?limit=20",
    "/v1/models",
)
JOB_TYPE, JOB_NAME = "JOB", "submission to clip"


class JobProblem(Exception):
    """A job that was accepted did not become a clip."""


class ReelserveUser(FastHttpUser):
    """Speaks with a key. A request that fails is reported under its name, which has no id in it."""

    abstract = True
    host = URL.rstrip("/").removesuffix("/v1")
    insecure = False  # the default would send the key to whoever answers

    def get(self, path: str, name: str, **options: Any) -> FastResponse:
        headers = {**AUTHORIZATION, **options.pop("headers", {})}
        return self.client.get(path, name=name, headers=headers, **options)

    def get_json(self, path: str, name: str, **options: Any) -> dict[str, Any] | None:
        """None when there was no success."""
        response = self.get(path, name, **options)
        return response.json() if response.status_code == HTTPStatus.OK else None


class ClipMaker(ReelserveUser):
    """Submits a small clip, polls as the OpenAI SDK does, and downloads it."""

    weight = 3
    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Take the shortest clip of the model that is served first."""
        models = self.get_json(MODELS, MODELS)
        seconds = min(models["data"][0]["seconds"]) if models else 1
        self.job = {"seconds": str(seconds), "steps": STEPS}

    @task
    def make_a_clip(self) -> None:
        began = time.perf_counter()
        video_id = self._submit()
        if video_id is None:
            return
        problem: JobProblem | None = None
        size_bytes = 0
        try:
            video = self._poll(video_id, began)
            size_bytes = self._download(video)
        except JobProblem as error:
            problem = error
        self.environment.events.request.fire(
            request_type=JOB_TYPE,
            name=JOB_NAME,
            response_time=1000 * (time.perf_counter() - began),
            response_length=size_bytes,
            exception=problem,
            context={},
        )

    def _submit(self) -> str | None:
        """The id of an accepted job."""
        fields = {
            **self.job,
            "prompt": random.choice(PROMPTS),  # noqa: S311
            "seed": random.randrange(SEED_MAX),  # noqa: S311
        }
        with self.client.post(
            SUBMIT, name=SUBMIT, json=fields, headers=AUTHORIZATION, catch_response=True
        ) as response:
            status = response.status_code
            refused = status == HTTPStatus.TOO_MANY_REQUESTS
            if refused:  # the queue's bound did its work: counted, apart from failures
                response.request_meta["name"] = REFUSED
                response.success()
        if refused:
            time.sleep(min(float(_header(response, "retry-after") or 1), RETRY_AFTER_S_MAX))
        return str(response.json()["id"]) if status == HTTPStatus.OK else None

    def _poll(self, video_id: str, began: float) -> dict[str, Any]:
        """The completed job. The first answer sets the interval of the whole wait."""
        interval_s = 0.0
        while time.perf_counter() - began < JOB_S_MAX:
            response = self.get(
                f"/v1/videos/{video_id}", POLL, headers={"x-stainless-poll-helper": "true"}
            )
            if response.status_code != HTTPStatus.OK:
                raise JobProblem(f"a poll was answered with {response.status_code}")
            video: dict[str, Any] = response.json()
            if video["status"] == "completed":
                return video
            if video["status"] not in ("queued", "in_progress"):
                raise JobProblem(f"{video['status']}: {(video['error'] or {}).get('code')}")
            interval_s = (
                interval_s or float(_header(response, POLL_AFTER) or POLL_MS_DEFAULT) / 1000
            )
            time.sleep(interval_s)
        raise JobProblem(f"no clip within {JOB_S_MAX:g} s")

    def _download(self, video: dict[str, Any]) -> int:
        """How many bytes the clip has, once all of them are here."""
        path = f"/v1/videos/{video['id']}/content"
        response = self.get(path, DOWNLOAD, allow_redirects=False)
        elsewhere = _header(response, "location")
        if elsewhere:  # signed by itself: the key is not for the object store's eyes
            response = self.client.get(elsewhere, name="the clip, from the object store")
        content: bytes = response.content or b""
        if response.status_code != HTTPStatus.OK:
            raise JobProblem(f"the download was answered with {response.status_code}")
        if content[4:8] != b"ftyp" or len(content) != video["size_bytes"]:
            raise JobProblem("the download was not the whole clip")
        return len(content)


class Visitor(ReelserveUser):
    """Lists clips and looks at models, like a page that somebody has open."""

    weight = 1
    wait_time = between(0.5, 2.0)

    @task(3)
    def list_clips(self) -> None:
        page = self.get_json(LIST, LIST)
        if page and page["data"]:
            self.get(f"/v1/videos/{page['data'][0]['id']}", POLL)

    @task(1)
    def look_at_models(self) -> None:
        self.get(MODELS, MODELS)


def _header(response: FastResponse, name: str) -> str | None:
    """None also when no answer came at all."""
    found = response.headers.get(name) if response.headers else None
    return None if found is None else str(found)
