"""The built wheel, installed into an environment of its own, away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.e2e.stacks import clean_env, create, up, wait_for

ROOT = Path(__file__).parents[2]
ROOMS = ("serving", "quota", "autoscale", "deployments", "loadtest")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(ROOT)],
        check=True,
        timeout=180,
    )
    (file,) = out.glob("reelserve-*.whl")
    return file


def test_it_carries_every_file_of_its_packages(wheel: Path) -> None:
    files = {
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"serving/jobs/lua/lease.lua", "deployments/catalog/demo-wan.yaml"} <= files <= inside
    (about,) = {name.split("/")[0] for name in inside if ".dist-info/" in name}
    assert {name.split("/")[0] for name in inside} == {*ROOMS, about}


def test_it_generates_a_clip_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", wheel],
        check=True,
        timeout=180,
    )
    # Its dependencies are those of this environment; a .pth file there is not read again, so
    # the checkout itself stays out of sight.
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = subprocess.run(
        [python, "-c", "import serving; print(serving.__file__)"],
        cwd=tmp_path,
        env=clean_env(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(home))
    with (
        up(tmp_path / "data", executable=home / "bin" / "reelserve", cwd=tmp_path) as stack,
        stack.client() as client,
    ):
        assert wait_for(client, create(client))["status"] == "completed"
        assert httpx.get(f"{stack.url}/docs").status_code == 200
