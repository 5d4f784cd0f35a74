import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.errors import LocalDiskError, WorkspaceBusy
from content.jobs import Job
from content.keys import Workspace
from content.metrics import PeriodicMetrics
from content.periodic import (
    PeriodicBackups,
    Schedule,
    ScheduleNotFound,
    Schedules,
    first_after_s,
    next_after_s,
)
from servicekit.metrics import Metrics
from servicekit.testing.fake_clock import FakeClock

_W = Workspace("me", "w")
_SCHEDULE = Schedule("me/w", "/root", "/root/me/w", ("*.log",), 3, 100.0)


class _Node:
    """Starts jobs that end when the test says so."""

    def __init__(self, file: Path) -> None:
        self.clock = FakeClock()
        self.jobs: list[Job] = []
        self.is_busy = False
        self.may_run = True
        self.metrics = Metrics()
        metrics = PeriodicMetrics.on(self.metrics)
        self.backups = PeriodicBackups(Schedules(file), metrics, clock=self.clock)

    def _begin(self, schedule: Schedule) -> Job:
        if self.is_busy:
            raise WorkspaceBusy(schedule.workspace, "something else")
        job = Job(str(len(self.jobs)), "periodic_backup", Workspace.parse(schedule.workspace), 0.0)
        self.jobs.append(job)
        return job

    def end(self, state: str) -> None:
        self.jobs[-1].state = state  # type: ignore[assignment]
        self.jobs[-1].finished.set()
        self.backups.look(self._begin, may_run=self.may_run)

    async def after(self, seconds: float) -> int:
        """Jobs that were started when so much time has passed."""
        await self.clock.advance(seconds)
        self.backups.look(self._begin, may_run=self.may_run)
        return len(self.jobs)


@pytest.fixture
async def node(tmp_path: Path) -> _Node:
    made = _Node(tmp_path / "state/schedules.json")
    await made.backups.start()
    return made


async def test_a_backup_begins_within_the_interval_and_the_next_one_interval_after_its_end(node) -> None:
    await node.backups.put(_W, _SCHEDULE)
    assert await node.after(100) == 1
    assert await node.after(1000) == 1  # it runs still
    node.end("done")
    assert (await node.after(99), await node.after(2)) == (1, 2)


async def test_a_failure_doubles_the_interval_and_a_success_ends_that(node) -> None:
    await node.backups.put(_W, _SCHEDULE)
    await node.after(100)
    node.end("failed")
    assert (await node.after(199), await node.after(2)) == (1, 2)
    node.end("done")
    assert await node.after(101) == 3


async def test_nothing_begins_while_the_workspace_has_a_job_or_the_disk_is_short(node) -> None:
    await node.backups.put(_W, _SCHEDULE)
    node.is_busy = True
    assert await node.after(200) == 0
    node.is_busy, node.may_run = False, False
    assert await node.after(200) == 0
    node.may_run = True
    assert await node.after(1) == 1


async def test_schedules_outlive_the_agent(node, tmp_path: Path) -> None:
    await node.backups.put(_W, _SCHEDULE)
    again = _Node(tmp_path / "state/schedules.json")
    await again.backups.start()
    assert again.backups.get(_W) == _SCHEDULE
    await again.backups.remove(_W)
    await again.backups.remove(_W)
    last = _Node(tmp_path / "state/schedules.json")
    await last.backups.start()
    with pytest.raises(ScheduleNotFound):
        last.backups.get(_W)


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"schedules": [{}]}', b'{"schedules": [{"exclude": 1}]}'])
async def test_a_damaged_list_is_not_taken_for_an_empty_one(node, tmp_path: Path, damaged: bytes) -> None:
    await node.backups.put(_W, _SCHEDULE)
    (tmp_path / "state/schedules.json").write_bytes(damaged)
    with pytest.raises(LocalDiskError, match="move it away"):
        await node.backups.start()


async def test_how_long_ago_the_worst_off_was_saved_is_measured(node) -> None:
    await node.backups.put(_W, _SCHEDULE)
    await node.after(250)
    age = node.metrics.registry.get_sample_value
    assert age("content_periodic_oldest_seconds") == 250
    node.end("done")
    assert age("content_periodic_oldest_seconds") == 0


@given(st.text(), st.floats(10, 1e6), st.integers(0, 10_000))
def test_the_first_is_within_the_interval_and_no_wait_is_shorter_than_it(name, every_s, failures) -> None:
    schedule = dataclasses.replace(_SCHEDULE, workspace=name, every_s=every_s)
    assert 0 <= first_after_s(schedule) < every_s
    assert every_s <= next_after_s(schedule, failures) <= max(every_s, 3600)
