"""The groups of jobs, on files in place of a v2 hierarchy; the real v1 one is in the component tests."""

from pathlib import Path

import pytest

from content.io_limits.groups import GroupSettings, JobGroups
from content.io_limits.limiter import IoLimits
from content.metrics import IoMetrics
from servicekit.metrics import Metrics

_LIMITS = IoLimits(read_bytes_s=10 << 20)


def _groups(tmp_path: Path, *, weight: int | None = None) -> tuple[JobGroups, Metrics]:
    """A parent with one group in it, as the kernel would make it."""
    made = tmp_path / "parent" / "job-1"
    made.mkdir(parents=True)
    for name in ("io.max", "cgroup.procs"):
        (made / name).touch()
    (made / "io.weight").write_text("default 100\n")
    (tmp_path / "parent" / "cgroup.subtree_control").write_text("memory\n")
    metrics = Metrics()
    settings = GroupSettings(tmp_path / "parent", tmp_path, _LIMITS, weight)
    return JobGroups(settings, IoMetrics.on(metrics)), metrics


def _count(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def test_v2_limits_and_weight_are_set_before_the_process_enters_and_lifted_at_the_end(
    tmp_path: Path,
) -> None:
    groups, metrics = _groups(tmp_path, weight=20)
    groups.prepare()
    assert (tmp_path / "parent/cgroup.subtree_control").read_text() == "+io\n"
    made = tmp_path / "parent/job-1"
    async with groups.group("1") as group:
        await group.take(4711)
        assert "rbps=10485760 wbps=max" in (made / "io.max").read_text()
        assert (made / "io.weight").read_text() == "default 20\n"
        assert (made / "cgroup.procs").read_text() == "4711\n"
        assert _count(metrics, "content_io_limits_in_force") == 1
        await group.lift()
        assert "rbps=max" in (made / "io.max").read_text()
        for file in made.iterdir():  # the kernel's files go with the directory, these do not
            file.unlink()
    assert not made.exists()
    assert _count(metrics, "content_io_limits_in_force") == 0
    for step in ("create", "limit", "weigh", "enter", "lift"):
        assert _count(metrics, "content_io_limit_failures_total", step=step) == 0


@pytest.mark.parametrize(
    ("broken", "step"), [("io.max", "limit"), ("io.weight", "weigh"), ("cgroup.procs", "enter")]
)
async def test_what_cannot_be_limited_is_counted_and_stops_nothing(
    tmp_path: Path, broken: str, step: str
) -> None:
    groups, metrics = _groups(tmp_path, weight=20)
    made = tmp_path / "parent/job-1"
    (made / broken).unlink()
    if broken == "cgroup.procs":
        (made / broken).mkdir()
    if broken == "io.max":
        (made / broken).symlink_to("/dev/null")  # swallows what is written
    async with groups.group("1") as group:
        await group.take(1)
        assert _count(metrics, "content_io_limit_failures_total", step=step) == 1
        for file in made.iterdir():
            file.rmdir() if file.is_dir() else file.unlink()


async def test_a_parent_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    metrics = Metrics()
    groups = JobGroups(GroupSettings(tmp_path / "file/parent", tmp_path, _LIMITS), IoMetrics.on(metrics))
    groups.prepare()
    assert _count(metrics, "content_io_limit_failures_total", step="create") == 1
