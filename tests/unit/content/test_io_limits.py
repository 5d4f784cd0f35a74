import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from content.errors import LocalDiskError
from content.io_limits.devices import Device, device_of, resolve
from content.io_limits.limiter import CgroupLimiter, IoLimits, LimitNotInForce

_DISK = Device(8, 0)
_LIMITS = IoLimits(read_bytes_s=50 << 20, write_operations_s=100)


def test_v2_is_written_as_the_kernel_wants_it(tmp_path: Path) -> None:
    (tmp_path / "io.max").touch()
    CgroupLimiter(tmp_path).apply(_DISK, _LIMITS)
    assert (tmp_path / "io.max").read_text() == "8:0 rbps=52428800 wbps=max riops=max wiops=100\n"
    assert CgroupLimiter(tmp_path).show() == {_DISK: _LIMITS}


def test_v2_is_cleared_with_max(tmp_path: Path) -> None:
    (tmp_path / "io.max").write_text("8:0 rbps=1000 wbps=max riops=max wiops=max\n")
    assert CgroupLimiter(tmp_path).clear() == [_DISK]
    assert (tmp_path / "io.max").read_text() == "8:0 rbps=max wbps=max riops=max wiops=max\n"


def test_a_limit_that_the_kernel_did_not_take_is_found_out(tmp_path: Path) -> None:
    """A file that swallows what is written, as a controller that is off does."""
    (tmp_path / "io.max").symlink_to("/dev/null")
    with pytest.raises(LimitNotInForce):
        CgroupLimiter(tmp_path).apply(_DISK, _LIMITS)


def test_a_directory_that_is_no_cgroup_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalDiskError, match="is no cgroup"):
        CgroupLimiter(tmp_path)


def test_a_partition_is_limited_through_its_disk(tmp_path: Path) -> None:
    disk = tmp_path / "sys/devices/pci/block/sda"
    (disk / "sda2").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / "sda2" / "partition").write_text("2\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block/8:2").symlink_to(disk / "sda2")
    assert resolve(8, 2, Path("/x"), root=tmp_path) == Device(8, 0)
    assert resolve(253, 7, Path("/x"), root=tmp_path) == Device(253, 7)


def test_an_overlay_is_limited_where_its_upper_directory_is(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    upper = tmp_path / "upper"
    upper.mkdir()
    line = f"36 35 0:99 / /merged rw - overlay overlay rw,lowerdir=/l,upperdir={upper},workdir=/w\n"
    (tmp_path / "proc/self/mountinfo").write_text(line)
    number = upper.stat().st_dev
    found = resolve(0, 99, Path("/merged"), root=tmp_path)
    assert found == resolve(os.major(number), os.minor(number), upper, root=tmp_path)


def test_memory_file_systems_cannot_be_limited_and_say_so(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("36 35 0:50 / /memory rw - tmpfs tmpfs rw\n")
    with pytest.raises(LocalDiskError, match="cannot be limited"):
        resolve(0, 50, Path("/memory/x"), root=tmp_path)


@pytest.fixture
def v1_cgroup():
    parent = Path("/sys/fs/cgroup/blkio")
    if not (parent / "blkio.throttle.read_bps_device").exists() or not os.access(parent, os.W_OK):
        pytest.skip("no cgroup v1 blkio controller to write to")
    made = parent / f"lapstrake-test-{os.getpid()}"
    made.mkdir()
    yield made
    made.rmdir()


def test_v1_limits_are_taken_by_the_real_kernel(v1_cgroup: Path, tmp_path: Path) -> None:
    device = device_of(tmp_path)
    limiter = CgroupLimiter(v1_cgroup)
    limiter.apply(device, _LIMITS)
    assert limiter.show() == {device: _LIMITS}
    limiter.clear()
    assert limiter.show() == {}


def test_a_mount_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("36 35 0:50 / /m rw - btrfs /dev/no\\040disk rw\n")
    with pytest.raises(LocalDiskError, match="/dev/no disk under"):
        resolve(0, 50, Path("/m"), root=tmp_path)


def _add_partition(loop: str) -> None:
    """The kernel may still be busy with the device's former life."""
    for _ in range(50):
        if not subprocess.run(["addpart", loop, "1", "2048", "81920"], check=False).returncode:
            return
        time.sleep(0.05)
    pytest.skip(f"{loop} stays busy")


@pytest.fixture
def partition(tmp_path: Path):
    """A file system on the first partition of a loop device, and that device."""
    image, mounted = tmp_path / "disk.img", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(48 << 20)
    if os.geteuid() or not all(map(shutil.which, ("losetup", "addpart", "mkfs.ext4"))):
        pytest.skip("needs root, losetup, addpart and mkfs.ext4")
    made = subprocess.run(["losetup", "-f", "--show", image], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip("this kernel gives no loop device")
    loop = made.stdout.strip()
    try:
        _add_partition(loop)
        subprocess.run(["mkfs.ext4", "-q", f"{loop}p1"], check=True)
        mounted.mkdir()
        subprocess.run(["mount", f"{loop}p1", mounted], check=True)
        number = Path(loop).stat().st_rdev
        yield mounted, Device(os.major(number), os.minor(number))
        subprocess.run(["umount", mounted], check=True)
    finally:
        subprocess.run(["delpart", loop, "1"], check=False)
        subprocess.run(["losetup", "-d", loop], check=True)


def test_a_real_overlay_on_a_partition_of_a_loop_device_is_limited_at_the_device(
    partition, v1_cgroup: Path
) -> None:
    mounted, loop = partition
    lower, upper, work, merged = (mounted / name for name in ("lower", "upper dir", "work", "merged"))
    for path in (lower, upper, work, merged):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        assert device_of(mounted) == device_of(merged) == loop
        CgroupLimiter(v1_cgroup).apply(device_of(merged), _LIMITS)
        assert CgroupLimiter(v1_cgroup).show() == {loop: _LIMITS}
        CgroupLimiter(v1_cgroup).clear()
    finally:
        subprocess.run(["umount", merged], check=True)
