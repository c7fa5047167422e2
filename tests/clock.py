"""A redis-server whose time of day a test moves: scripts ask Redis for the time, nobody else."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

from tests.tools import ToolMissingError

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """How far the clock of the processes started with ``environment`` is off.

    :class:`ToolMissingError` when there is no compiler for ``clock.c``; Linux only.
    """

    def __init__(self, folder: Path) -> None:
        library, file = folder / "clock.so", folder / "clock.offset"
        flags = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
        try:
            subprocess.run(
                ["gcc", *flags, "-o", library, SOURCE], capture_output=True, text=True, check=True
            )
        except FileNotFoundError as error:
            raise ToolMissingError(
                "there is no gcc, which the tests that move the clock of Redis need. "
                "Install it (`apt install gcc libc6-dev`)."
            ) from error
        except subprocess.CalledProcessError as error:
            raise ToolMissingError(f"gcc does not build {SOURCE}:\n{error.stderr}") from error
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._offset_ms = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "REELSERVE_TEST_CLOCK": str(file)}

    def set(self, offset_s: float) -> None:
        """So many seconds ahead of the true time; behind it, if negative."""
        self._offset_ms[:] = struct.pack("q", round(offset_s * 1000))

    def jump(self, seconds: float) -> None:
        """On by so many seconds from where it is; back, if negative."""
        (offset_ms,) = struct.unpack("q", self._offset_ms[:])
        self.set(offset_ms / 1000 + seconds)
