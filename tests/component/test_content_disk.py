"""Disks that are full, over quota, or return errors: said, and never taken for content."""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cli.exit_codes import DISK, exit_code
from content.backup import BackupRequest, BackupResult, back_up
from content.catalog import Catalog
from content.errors import LocalDiskError
from content.foreign import unpack_file
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.objects.directory import DirectoryObjectStore
from content.restore import RestoreRequest, restore
from content.verify import verify
from tests.support.mounts import Btrfs, tmpfs
from tests.support.trees import facts, wait_past_racy_window

W = Workspace("someone", "project")
_RANDOM = random.Random(11)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryObjectStore:
    return DirectoryObjectStore(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(3):
        (tree / f"file-{number}").write_bytes(_RANDOM.randbytes(2 << 20))
    return tree


async def _backup(tree: Path, store: MultipartStore) -> BackupResult:
    return await back_up(BackupRequest(tree, W), store)


async def _restore(store: MultipartStore, target: Path) -> Path:
    await restore(RestoreRequest(target, W, sync=False), store)
    return target


async def test_a_full_store_keeps_what_it_has(tree: Path, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", size="10m") as small:
        store = DirectoryObjectStore(small / "store")
        first = (await _backup(tree, store)).snapshot
        (tree / "more").write_bytes(bytes(8 << 20))
        with pytest.raises(LocalDiskError, match="No space left on device") as caught:
            await _backup(tree, store)
        assert exit_code(caught.value) == DISK
        assert await Catalog(store, W).snapshot(None) == first
        assert not (await verify(store, first)).problems
        assert not list((small / "store" / "uploads").iterdir())


@pytest.mark.parametrize("short", ["bytes", "inodes"])
async def test_a_restore_that_cannot_fit_is_refused_before_it_begins(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path, short: str
) -> None:
    options = {"size": "3m"} if short == "bytes" else {"nr_inodes": 5}
    for number in range(5):
        (tree / f"small-{number}").touch()
    await _backup(tree, store)
    with tmpfs(tmp_path / "small", **options) as small:
        with pytest.raises(LocalDiskError, match=f"needs [0-9]+ {short}"):
            await _restore(store, small / "out")
        assert not list(small.iterdir())


async def test_a_disk_that_fills_during_a_restore_leaves_no_target(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    """A block per file is more than the archive says."""
    for number in range(1500):
        (tree / f"small-{number}").write_bytes(b"x")
    for number in range(3):
        (tree / f"file-{number}").unlink()
    await _backup(tree, store)
    with tmpfs(tmp_path / "small", size="4m") as small:
        with pytest.raises(LocalDiskError, match="No space left on device"):
            await _restore(store, small / "out")
        assert not list(small.iterdir())


async def test_a_full_disk_under_a_foreign_tar_leaves_no_target(tree: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "their.tar", "-C", tree, "."], check=True)
    with tmpfs(tmp_path / "small", size="3m") as small:
        with pytest.raises(Exception, match=r"more than the|No space left") as caught:
            await unpack_file(tmp_path / "their.tar", small / "out")
        assert exit_code(caught.value) != 1
        assert not list(small.iterdir())


async def test_no_room_for_the_index_ends_the_backup_instead_of_leaving_files_out(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3000):
        (tree / f"{number}-{_RANDOM.randbytes(40).hex()}").touch()
    with tmpfs(tmp_path / "small", size="64k") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        with pytest.raises(LocalDiskError, match="No space left on device"):
            await _backup(tree, store)
    assert (await Catalog(store, W).load()).pointer.snapshots == ()


@pytest.mark.component("btrfs-progs")
async def test_a_file_that_the_disk_cannot_read_is_named_and_the_rest_is_kept(
    store: DirectoryObjectStore, tmp_path: Path
) -> None:
    """EIO at the beginning of a small file, and in the middle of a large one."""
    disk = Btrfs(tmp_path)
    small, large = _RANDOM.randbytes(300_000), _RANDOM.randbytes(12 << 20)
    good = {f"good-{number}": _RANDOM.randbytes(700_000) for number in range(4)}
    with disk.mounted() as point:
        (point / "tree").mkdir()
        for name, content in {"bad-small": small, "e-bad-large": large, **good}.items():
            (point / "tree" / name).write_bytes(content)
    disk.corrupt(small[:4096])
    disk.corrupt(large[7 << 20 : (7 << 20) + 4096])
    with disk.mounted() as point:
        result = await _backup(point / "tree", store)
        assert {item.path: item.reason for item in result.left_out if not item.expected} == {
            "bad-small": "cannot be read: Input/output error",
            "e-bad-large": "cannot be read: Input/output error",
        }
        assert not (await verify(store, result.snapshot)).problems
        out = await _restore(store, tmp_path / "out")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == good
        wait_past_racy_window(point / "tree")
        (point / "tree" / "e-bad-large").unlink()
        again = await _backup(point / "tree", store)
        assert not (await verify(store, again.snapshot)).problems
    tar = store.root / "objects" / again.snapshot.tar_key
    listed = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True).stdout
    assert "e-bad-large" not in listed, "what could not be read came back for plain tar"


@pytest.mark.component("btrfs-progs")
async def test_a_quota_is_said_and_leaves_nothing(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    wanted = facts(tree)
    await _backup(tree, store)
    disk = Btrfs(tmp_path)
    with disk.mounted() as point:
        disk.limit(point, 2 << 20)
        with pytest.raises(LocalDiskError, match="Disk quota exceeded") as caught:
            await _restore(store, point / "out")
        assert exit_code(caught.value) == DISK
        assert not list(point.iterdir())
        with pytest.raises(LocalDiskError, match="Disk quota exceeded"):
            await _backup(tree, DirectoryObjectStore(point / "store"))
        assert not list(point.glob("store/objects/**/*.tar"))
    assert facts(await _restore(store, tmp_path / "out")) == wanted


def test_a_full_disk_is_one_line_and_its_exit_code(tree: Path, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", size="4m") as small:
        lapstrake = [sys.executable, "-c", "from cli.main import main; main()"]
        where = ["--workspace", str(W), "--store", f"file://{small}/store"]
        done = subprocess.run(
            [*lapstrake, "backup", str(tree), *where], capture_output=True, text=True, check=False
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (DISK, 1)
    assert "No space left on device" in done.stderr
