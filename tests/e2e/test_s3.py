"""A stack whose clips are in S3: bytes come from the bucket, not through us."""

from __future__ import annotations

from pathlib import Path

import boto3
import httpx
from moto.server import ThreadedMotoServer

from tests.e2e.stacks import create, up, wait_for


def test_content_is_a_redirect_to_the_bucket(tmp_path: Path) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "REELSERVE_ARTIFACTS_URL": "s3://clips/prefix",
            # And in passing: it all works without HAProxy too.
            "REELSERVE_PROXY": "serve",
        }
        boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ).create_bucket(Bucket="clips")
        with up(tmp_path / "data", env=env) as stack, stack.client() as client:
            assert stack.named("haproxy") == []
            video_id = create(client)
            assert wait_for(client, video_id)["status"] == "completed"
            answer = client.get(f"/v1/videos/{video_id}/content")
            assert answer.status_code == 302
            url = answer.headers["location"]
            assert url.startswith(f"{env['AWS_ENDPOINT_URL']}/clips/prefix/{video_id}/")
            clip = httpx.get(url)
            assert (clip.headers["content-type"], clip.content[4:8]) == ("video/mp4", b"ftyp")
            part = httpx.get(url, headers={"range": "bytes=4-7"})
            assert (part.status_code, part.content) == (206, b"ftyp")
            head = client.head(f"/v1/videos/{video_id}/content")
            assert head.headers["content-length"] == str(len(clip.content))
            client.delete(f"/v1/videos/{video_id}")
            assert httpx.get(url).status_code == 404
    finally:
        server.stop()
