"""A real server as a child process: started, awaited, ended by its own id, its log kept for the report."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

START_S = 30.0
STOP_S = 10.0
_POLL_S = 0.02
_LOG_TAIL_BYTES = 8000

_started: list["Process"] = []


def free_port() -> int:
    """A loopback TCP port that was free just now, chosen by the kernel."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class ProcessFailed(Exception):
    def __init__(self, process: "Process", what: str) -> None:
        super().__init__(f"{process.name} {what}; its log ends:\n{process.log_tail()}")


class Process:
    """One server; a context manager that starts it and, whatever happens, ends it.

    May be stopped and started again: with the same arguments, so on the same address.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        ready: Callable[["Process"], bool],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._argv = [str(part) for part in argv]
        self._ready = ready
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was not started"
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Returns when it is ready; raises ProcessFailed when it ends first or takes too long."""
        assert not self.is_running, f"{self.name} is running already"
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._child = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
            )
        _started.append(self)
        try:
            self._await(self._ready, "being ready")
        except BaseException:
            self.stop()
            raise

    def _await(self, ready: Callable[["Process"], bool], what: str) -> None:
        deadline_s = time.monotonic() + START_S
        while not ready(self):
            if not self.is_running:
                raise ProcessFailed(self, f"ended with code {self.wait()} before {what}")
            if time.monotonic() > deadline_s:
                raise ProcessFailed(self, f"took more than {START_S:.0f} s until {what}")
            time.sleep(_POLL_S)

    def await_log(self, text: str) -> None:
        """Returns when the log holds ``text``; raises ProcessFailed when it ends first or takes too long."""
        self._await(logs(text), f"{text!r} in its log")

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended already. Returns when a stop has taken effect."""
        if self.is_running:
            os.kill(self.pid, number)
            if number == signal.SIGSTOP:
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Its return code. Raises subprocess.TimeoutExpired."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child.wait(timeout_s)

    def stop(self) -> int | None:
        """SIGTERM, then SIGKILL after a grace; its return code, or None when it never ran."""
        if self._child is None:
            return None
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process cannot hear the first one
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL: no farewell, as after a power cut or the kernel's out-of-memory killer."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def log_text(self) -> str:
        """What it wrote since it was last started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def log_tail(self) -> str:
        return self.log_text()[-_LOG_TAIL_BYTES:]


def accepts(port: int, host: str = "127.0.0.1") -> Callable[[Process], bool]:
    """Ready when something accepts connections there."""

    def ready(_process: Process) -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            return client.connect_ex((host, port)) == 0

    return ready


def logs(text: str) -> Callable[[Process], bool]:
    """Ready when the log holds ``text``."""
    return lambda process: text in process.log_text()


def take_logs() -> list[tuple[str, str]]:
    """(title, end of log) of every process started since the last call; for the report of a failure."""
    titled = {
        f"log of {process.name} [{process.pid}]": process.log_tail()
        for process in _started
        if process.log.exists()
    }
    _started[:] = [process for process in _started if process.is_running]
    return list(titled.items())
