"""A cgroup for each job's process, with limits on the disk that the workspaces are on.

Everything here fails open: a job without its limits is counted and named in the log, and runs. Limits are
lifted before a process is ended, because one that waits in a throttled request cannot die.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from content.errors import ContentError
from content.io_limits.devices import device_of
from content.io_limits.limiter import UNLIMITED, CgroupLimiter, IoLimits
from content.metrics import IoMetrics

T = TypeVar("T")
_PREFIX = "job-"
_REMOVE_TRIES, _REMOVE_EVERY_S = 20, 0.05
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """``parent`` is where groups are made: below ``blkio`` (v1), or a delegated group with ``io`` (v2).

    ``weight`` is relative to the neighbours' 100, where the kernel has a scheduler that knows weights.
    """

    parent: Path
    disk: Path
    limits: IoLimits = UNLIMITED
    weight: int | None = None


class JobGroup:
    """The group of one job."""

    def __init__(self, directory: Path, groups: "JobGroups") -> None:
        self._directory = directory
        self._groups = groups
        self._in_force = False

    async def take(self, process_id: int) -> None:
        """Limits the group, then moves the process there."""
        await asyncio.to_thread(self._take, process_id)

    def _take(self, process_id: int) -> None:
        settings, step = self._groups.settings, self._groups.step
        with step("create"):
            self._directory.mkdir(exist_ok=True)
        with step("limit"):
            if settings.limits != UNLIMITED:
                CgroupLimiter(self._directory).apply(device_of(settings.disk), settings.limits)
                self._in_force = True
                self._groups.metrics.in_force.inc()
        with step("weigh"):
            if settings.weight is not None:
                _weigh(self._directory, settings.weight)
        with step("enter"):
            (self._directory / "cgroup.procs").write_text(f"{process_id}\n")

    async def lift(self) -> None:
        """Ends the limits; to be awaited before the process is ended."""
        if self._in_force:
            self._in_force = False
            self._groups.metrics.in_force.dec()
            await asyncio.to_thread(self._lift)

    def _lift(self) -> None:
        with self._groups.step("lift"):
            CgroupLimiter(self._directory).clear()

    async def remove(self) -> None:
        """After the process has ended; the kernel may take a moment to notice."""
        for tries_left in range(_REMOVE_TRIES, -1, -1):
            try:
                await asyncio.to_thread(self._directory.rmdir)
            except FileNotFoundError:
                return
            except OSError as error:
                if not tries_left:
                    _log.warning("cgroup_left", cgroup=str(self._directory), reason=error.strerror)
                await asyncio.sleep(_REMOVE_EVERY_S)
            else:
                return


class JobGroups:
    """Makes groups; without settings there are none, and everything is a no-op."""

    def __init__(self, settings: GroupSettings, metrics: IoMetrics) -> None:
        self.settings = settings
        self.metrics = metrics

    def prepare(self) -> None:
        """Makes the parent, hands the io controller down (v2), and removes what a crash left. Blocking."""
        parent = self.settings.parent
        with self.step("create"):
            parent.mkdir(parents=True, exist_ok=True)
        with self.step("delegate"):
            control = parent / "cgroup.subtree_control"
            if control.exists() and "io" not in control.read_text().split():
                control.write_text("+io\n")
        for left in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError, ContentError):
                CgroupLimiter(left).clear()
            with contextlib.suppress(OSError):
                left.rmdir()  # fails while a process is in it

    @contextlib.asynccontextmanager
    async def group(self, job_id: str) -> AsyncIterator[JobGroup]:
        """Lifted and removed at the end, by when its process must be gone."""
        group = JobGroup(self.settings.parent / f"{_PREFIX}{job_id}", self)
        try:
            yield group
        finally:
            await group.lift()
            await group.remove()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Counts and logs what fails in the block, and goes on."""
        try:
            yield
        except (OSError, ContentError, ValueError) as error:
            self.metrics.failures.labels(name).inc()
            _log.warning("io_limit_failed", step=name, parent=str(self.settings.parent), error=str(error))


def _weigh(directory: Path, weight: int) -> None:
    """By the first file that this kernel has."""
    files: dict[str, Callable[[int], str]] = {
        "io.weight": lambda value: f"default {value}\n",
        "io.bfq.weight": lambda value: f"{value}\n",
        "blkio.bfq.weight": lambda value: f"{value}\n",
        "blkio.weight": lambda value: f"{max(10, value)}\n",
    }
    for name, line in files.items():
        if (directory / name).exists():
            (directory / name).write_text(line(weight))
            return
    raise OSError(0, f"{directory} has no file for a weight")
