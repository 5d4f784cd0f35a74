"""Several processes on one port: the kernel spreads connections, the cache directory is shared.

This process only starts the others and replaces one that dies. It holds the port without listening, so that
the address stays the same whatever happens to the workers.
"""

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from servicekit.parent import end_with

_log = structlog.get_logger(__name__)
_RESTART_S = 1.0
_ENDING = (signal.SIGTERM, signal.SIGINT)

Work = Callable[[int, Callable[[], None]], int]
"""What worker number ... does until SIGTERM; it calls its second argument once, when it serves. Answers the
process's exit status."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker's place among ``count``, from 0; who replaces it takes the same one."""

    directory: Path
    number: int = 0
    count: int = 1

    @property
    def address(self) -> Path:
        """The Unix socket where it answers its fellows."""
        return self._address(self.number)

    @property
    def fellows(self) -> dict[str, Path]:
        """The sockets of the others by their numbers."""
        return {str(number): self._address(number) for number in range(self.count) if number != self.number}

    def _address(self, number: int) -> Path:
        return self.directory / f"worker-{number}.sock"


@contextlib.contextmanager
def held_port(host: str, port: int) -> Iterator[tuple[str, int]]:
    """A port that workers may bind together; 0 picks a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        yield holder.getsockname()[:2]


@dataclass
class Workers:
    """Blocking; for a process that has no event loop and no threads, with which its workers end."""

    count: int
    work: Work
    on_ready: Callable[[], None]
    _children: dict[int, tuple[int, float]] = field(default_factory=dict)
    """The number of each process and when it began."""
    _stopping: bool = False
    _status: int = 0

    def run(self) -> int:
        """Returns when all have ended, after SIGTERM or SIGINT or because one could not begin: the status of
        the first that ended badly, or 0.
        """
        reader, writer = os.pipe()
        for number in _ENDING:
            signal.signal(number, self._stop)
        for seat in range(self.count):
            self._fork(seat, reader, writer)
        self._await_ready(reader)
        return self._supervise(reader, writer)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for pid in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _fork(self, seat: int, reader: int, writer: int) -> None:
        """Signals wait meanwhile: one that came between would miss the new process, and leave it behind."""
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            pid = None if self._stopping else os.fork()
            if pid:
                self._children[pid] = (seat, time.monotonic())
            if pid == 0:
                for number in _ENDING:
                    signal.signal(number, signal.SIG_DFL)
                end_with(parent)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if pid == 0:
            self._become(seat, reader, writer)

    def _become(self, seat: int, reader: int, writer: int) -> None:
        status = 1
        try:
            os.close(reader)
            status = self.work(seat, lambda: _report(writer))
        except Exception:  # noqa: BLE001 (the boundary of a process)
            _log.exception("worker_failed")
        finally:
            os._exit(status)  # the parent's cleanup is the parent's

    def _await_ready(self, reader: int) -> None:
        """Until each has reported, or one could not begin: then the others are to end as well."""
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            ready = 0
            while ready < self.count and not self._stopping:
                if selector.select(timeout=0.1):
                    ready += len(os.read(reader, self.count))
                pid, raw = os.waitpid(-1, os.WNOHANG)
                if pid:
                    del self._children[pid]
                    self._status = _status(raw) or 1
                    self._stop()
        if not self._status:
            self.on_ready()

    def _supervise(self, reader: int, writer: int) -> int:
        while self._children:
            pid, raw = os.waitpid(-1, 0)
            seat, started_s = self._children.pop(pid)
            if self._stopping:
                self._status = self._status or _status(raw)
            else:
                _log.error("worker_died", pid=pid, status=os.waitstatus_to_exitcode(raw))
                time.sleep(max(0.0, started_s + _RESTART_S - time.monotonic()))
                self._fork(seat, reader, writer)
        return self._status


def _status(raw: int) -> int:
    """As a process that ended so would be told by its parent; ended as asked is 0."""
    status = os.waitstatus_to_exitcode(raw)
    return 0 if status == -signal.SIGTERM else status if status >= 0 else 1


def _report(writer: int) -> None:
    os.write(writer, b".")
    os.close(writer)
