"""On files in place of a v2 hierarchy."""

from pathlib import Path

from content.io_limits.limiter import CgroupLimiter, IoLimits
from content.io_limits.workspaces import Held, WorkspaceLimits
from content.keys import Workspace
from content.metrics import IoMetrics
from servicekit.metrics import Metrics

_W, _HELD = Workspace("me", "w"), Held("w", IoLimits(read_bytes_s=1000))


async def test_limits_that_somebody_wrote_over_are_written_again_and_a_group_that_is_gone_is_forgotten(
    tmp_path: Path,
) -> None:
    file = tmp_path / "w" / "io.max"
    file.parent.mkdir()
    file.touch()
    metrics = Metrics()
    limits = WorkspaceLimits(tmp_path, tmp_path, IoMetrics.on(metrics))
    await limits.apply(_W, _HELD)
    wanted = file.read_text()
    file.write_text("")
    await limits.reconcile()
    assert file.read_text() == wanted
    file.unlink()
    file.symlink_to("/dev/null")  # a controller that takes nothing
    await limits.reconcile()
    assert metrics.registry.get_sample_value("content_io_limit_failures_total", {"step": "workspace"}) == 1
    file.unlink()
    file.parent.rmdir()
    await limits.reconcile()
    file.parent.mkdir()
    file.touch()
    await limits.reconcile()
    assert CgroupLimiter(file.parent).show() == {}
