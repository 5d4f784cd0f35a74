"""Backups of workspaces that are running, so that a stop moves only the last changes, and a lost node loses
minutes.

Which workspaces these are is kept in a file, because an agent that forgets them at its restart would stop
backing them up without anybody noticing. The first backups are spread over the interval, so that a restart
is no thundering herd; after a failure the interval doubles, up to an hour.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from content.errors import ContentError, InvalidWorkspace, LocalDiskError, NotFound
from content.jobs import Job
from content.keys import Workspace
from content.metrics import PeriodicMetrics
from servicekit.atomic import atomic_write
from servicekit.clock import Clock, SystemClock

_LOOK_EVERY_S = 1.0
_LONGEST_S = 3600.0
_MAX_DOUBLINGS = 20
_log = structlog.get_logger(__name__)


class ScheduleNotFound(NotFound):
    def __init__(self, workspace: str) -> None:
        super().__init__(f"workspace {workspace} has no periodic backups")


@dataclass(frozen=True, slots=True)
class Schedule:
    """One running workspace. ``root`` confines ``path``."""

    workspace: str
    root: str
    path: str
    exclude: tuple[str, ...]
    incarnation: int | None
    every_s: float


def first_after_s(schedule: Schedule) -> float:
    """How long after the start the first backup is due: a share of the interval by the workspace's name."""
    spread = int.from_bytes(hashlib.sha256(schedule.workspace.encode()).digest()[:4], "big") / 2**32
    return schedule.every_s * spread


def next_after_s(schedule: Schedule, failures: int) -> float:
    """How long after one backup has ended the next is due."""
    if not failures:
        return schedule.every_s
    doubled_s = schedule.every_s * float(1 << min(failures, _MAX_DOUBLINGS))
    return max(schedule.every_s, min(_LONGEST_S, doubled_s))


Begin = Callable[[Schedule], Job]


class Schedules:
    """The file; every change is there before it is acted upon. Blocking."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> dict[Workspace, Schedule]:
        """Raises LocalDiskError for a file that cannot be understood: it must not be taken for empty."""
        try:
            rows = json.loads(self._file.read_bytes())["schedules"]
            made = [Schedule(**{**row, "exclude": tuple(row["exclude"])}) for row in rows]
            return {Workspace.parse(schedule.workspace): schedule for schedule in made}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LocalDiskError.from_os(str(self._file), error) from error
        except (ValueError, KeyError, TypeError, InvalidWorkspace) as error:
            raise LocalDiskError(str(self._file), "is no list of schedules; move it away") from error

    def save(self, schedules: Sequence[Schedule]) -> None:
        """Raises LocalDiskError."""
        document = {"format_version": 1, "schedules": [asdict(schedule) for schedule in schedules]}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._file, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise LocalDiskError.from_os(str(self._file), error) from error


@dataclass(slots=True)
class _Entry:
    schedule: Schedule
    due_s: float
    saved_s: float
    failures: int = 0
    job: Job | None = None


def _try(entry: _Entry, begin: Begin) -> None:
    try:
        entry.job = begin(entry.schedule)
    except ContentError as error:  # the workspace has another job: at the next look
        _log.debug("periodic_backup_put_off", workspace=entry.schedule.workspace, error=str(error))


class PeriodicBackups:
    """`start` once, then `run` until cancelled."""

    def __init__(
        self,
        schedules: Schedules,
        metrics: PeriodicMetrics,
        *,
        clock: Clock = SystemClock(),
    ) -> None:
        self._schedules = schedules
        self._metrics = metrics
        self._clock = clock
        self._entries: dict[Workspace, _Entry] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Reads the file. Raises LocalDiskError."""
        known = await asyncio.to_thread(self._schedules.load)
        self._entries = {workspace: self._entry(schedule) for workspace, schedule in known.items()}

    def _entry(self, schedule: Schedule) -> _Entry:
        now_s = self._clock.monotonic()
        return _Entry(schedule, now_s + first_after_s(schedule), now_s)

    def get(self, workspace: Workspace) -> Schedule:
        """Raises ScheduleNotFound."""
        if (entry := self._entries.get(workspace)) is None:
            raise ScheduleNotFound(str(workspace))
        return entry.schedule

    def all(self) -> Mapping[Workspace, Schedule]:
        return {workspace: entry.schedule for workspace, entry in self._entries.items()}

    async def put(self, workspace: Workspace, schedule: Schedule) -> None:
        """Adds or replaces. Raises LocalDiskError, and then nothing has changed."""
        async with self._changing:
            if (known := self._entries.get(workspace)) is not None and known.schedule == schedule:
                return
            await self._save({**self.all(), workspace: schedule})
            self._entries[workspace] = self._entry(schedule)

    async def remove(self, workspace: Workspace) -> None:
        """Also when there is none. Raises LocalDiskError."""
        async with self._changing:
            if workspace in self._entries:
                await self._save({at: one for at, one in self.all().items() if at != workspace})
                del self._entries[workspace]

    async def _save(self, schedules: Mapping[Workspace, Schedule]) -> None:
        await asyncio.to_thread(self._schedules.save, list(schedules.values()))

    async def run(self, begin: Begin, may_run: Callable[[], bool]) -> None:
        """``begin`` raises ContentError when it cannot; ``may_run`` says no while the disk is short."""
        while True:
            self.look(begin, may_run=may_run())
            await self._clock.sleep(_LOOK_EVERY_S)

    def look(self, begin: Begin, *, may_run: bool) -> None:
        """Starts what is due, notes what has ended."""
        now_s = self._clock.monotonic()
        for entry in self._entries.values():
            if entry.job is not None and entry.job.finished.is_set():
                self._ended(entry, entry.job, now_s)
            if entry.job is None and may_run and now_s >= entry.due_s:
                _try(entry, begin)
        self._metrics.workspaces.set(len(self._entries))
        oldest_s = min((entry.saved_s for entry in self._entries.values()), default=now_s)
        self._metrics.age.set(now_s - oldest_s)

    def _ended(self, entry: _Entry, job: Job, now_s: float) -> None:
        entry.job = None
        if job.state == "done":
            entry.failures, entry.saved_s = 0, now_s
        elif job.state == "failed":
            entry.failures += 1
            self._metrics.failures.inc()
        entry.due_s = now_s + next_after_s(entry.schedule, entry.failures)
