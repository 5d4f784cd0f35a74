"""What trees can hold beyond files with names: kept as it is, by us and in the eyes of GNU tar."""

import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from content.backup import BackupRequest, BackupResult, back_up
from content.keys import Workspace
from content.objects.directory import DirectoryObjectStore
from content.restore import RestoreRequest, restore
from tests.support.trees import facts

W = Workspace("someone", "project")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make these")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryObjectStore:
    return DirectoryObjectStore(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


async def _there_and_back(tree: Path, store: DirectoryObjectStore, tmp_path: Path) -> BackupResult:
    """Restored by us and by GNU tar; both must be the tree."""
    result = await back_up(BackupRequest(tree, W), store)
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert facts(tmp_path / "out") == facts(tree)
    (tmp_path / "untarred").mkdir()
    tar = ["tar", "--xattrs", "--xattrs-include=*", "-xpf", store.root / "objects" / result.snapshot.tar_key]
    subprocess.run([*tar, "-C", tmp_path / "untarred"], check=True, capture_output=True)
    assert facts(tmp_path / "untarred") == facts(tree)
    return result


@root_only
@pytest.mark.component("setfacl")
async def test_acls_and_capabilities(tree: Path, store: DirectoryObjectStore, tmp_path: Path) -> None:
    (tree / "shared").mkdir()
    (tree / "tool").write_bytes(b"tool")
    os.chown(tree / "tool", 1234, 1234)
    (tree / "tool").chmod(0o755)
    os.setxattr(tree / "tool", "security.capability", CAPABILITY)
    subprocess.run(["setfacl", "-m", "u:1000:rw", tree / "tool"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx,g:7:r", tree / "shared"], check=True)
    await _there_and_back(tree, store, tmp_path)
    assert os.getxattr(tmp_path / "out" / "tool", "security.capability") == CAPABILITY


@root_only
async def test_devices_modes_and_owners(tree: Path, store: DirectoryObjectStore, tmp_path: Path) -> None:
    """Also an overlay's whiteout, and names that an image's layer would understand otherwise."""
    os.mknod(tree / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(tree / "loop", 0o660 | stat.S_IFBLK, os.makedev(7, 0))
    os.mknod(tree / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    (tree / ".wh.name").write_bytes(b"a file like any other")
    (tree / ".wh..wh..opq").touch()
    for number, mode in enumerate([0o4755, 0o2755, 0o1777, 0o000, 0o6000]):
        (tree / f"mode-{number}").mkdir() if mode == 0o1777 else (tree / f"mode-{number}").touch()
        os.chown(tree / f"mode-{number}", 3_000_000 + number, 4_000_000_000)
        (tree / f"mode-{number}").chmod(mode)
    await _there_and_back(tree, store, tmp_path)
    assert (tmp_path / "out" / "null").stat().st_rdev == os.makedev(1, 3)
    assert (tmp_path / "out" / "whiteout").stat().st_rdev == 0


@pytest.mark.parametrize(
    "mtime_ns", [0, 1, -1, -(10**18) - 1, 2**31 * 10**9 + 1, 2**33 * 10**9 + 999_999_999, 10**18 - 1]
)
async def test_times(tree: Path, store: DirectoryObjectStore, tmp_path: Path, mtime_ns: int) -> None:
    (tree / "file").write_bytes(b"x")
    os.utime(tree / "file", ns=(mtime_ns, mtime_ns))
    os.utime(tree, ns=(mtime_ns, mtime_ns))
    assert (tree / "file").stat().st_mtime_ns // 10**9 in {
        mtime_ns // 10**9,
        2**31 - 1,
        15032385535,
        -(2**31),
    }
    await back_up(BackupRequest(tree, W), store)
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert facts(tmp_path / "out") == facts(tree)


async def test_paths_longer_than_any_system_call_takes(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    """30 directories of 200 bytes: each name is reached from the one above it."""
    name = b"d" * 200
    here = os.open(tree, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    result = await back_up(BackupRequest(tree, W), store)
    assert (result.snapshot.entries, result.left_out) == (32, [])
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    depth = [files for _, _, files, _ in os.fwalk(tmp_path / "out")]
    assert (len(depth), depth[-1]) == (31, ["bottom"])
    only = "/".join([name.decode()] * 30 + ["bottom"])
    await restore(RestoreRequest(tmp_path / "one", W, only=(only,), sync=False), store)
    assert len(list(os.fwalk(tmp_path / "one"))) == 31
    await restore(RestoreRequest(tmp_path / "out", W, replace=True, sync=False), store)
    subprocess.run(["rm", "-rf", tree, tmp_path / "out", tmp_path / "one"], check=True)


async def test_many_holes_and_many_attributes(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    with (tree / "holes").open("wb") as file:
        for number in range(300):
            file.seek(number * 16384)
            file.write(b"%d" % number)
        file.truncate(6 << 20)
    with (tree / "only-a-hole").open("wb") as file:
        file.truncate((1 << 20) + 1)
    (tree / "attributes").touch()
    for number in range(20):
        os.setxattr(tree / "attributes", f"user.number={number}%", bytes([number, 0, 10]) * number)
    await _there_and_back(tree, store, tmp_path)


@root_only
@pytest.mark.component("setpriv")
def test_read_only_directories_without_a_privilege_that_helps(tree: Path, tmp_path: Path) -> None:
    (tree / "locked" / "deep").mkdir(parents=True)
    (tree / "locked" / "deep" / "file").write_bytes(b"inside")
    (tree / "locked" / "deep" / "file").chmod(0o400)
    (tree / "locked" / "deep").chmod(0o555)
    (tree / "locked").chmod(0o500)
    powerless = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    assert subprocess.run([*powerless, "touch", tree / "locked" / "x"], check=False).returncode
    lapstrake = [*powerless, sys.executable, "-c", "from cli.main import main; main()"]
    where = ["--workspace", str(W), "--store", f"file://{tmp_path}/store"]
    for command in (["backup", tree], ["restore", tmp_path / "out"]):
        subprocess.run([*lapstrake, *map(str, command), *where], check=True)
    assert facts(tmp_path / "out") == facts(tree)
