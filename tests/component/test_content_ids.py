"""Trees of user namespaces: archived as they are seen inside, restored for another range outside."""

import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from content.archive.id_map import IdMap, IdUnmapped
from content.backup import BackupRequest, back_up
from content.keys import Workspace
from content.objects.directory import DirectoryObjectStore
from content.restore import RestoreRequest, restore
from tests.support.trees import facts, wait_past_racy_window

W = Workspace("someone", "project")
HERE = IdMap.parse(["0:100000:65536"], [])
THERE = IdMap.parse(["0:300000:65536"], [])
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryObjectStore:
    return DirectoryObjectStore(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "home" / "user").mkdir(parents=True)
    (tree / "home" / "user" / "file").write_bytes(b"mine")
    (tree / "acl").write_bytes(b"shared")
    (tree / "tool").write_bytes(b"#!/bin/true")
    (tree / "tool").chmod(0o755)
    (tree / "link").symlink_to("acl")
    os.mkfifo(tree / "pipe")
    for path in [tree, *tree.rglob("*")]:
        owner = 1000 if "user" in path.name or path.name == "file" else 0
        os.chown(path, 100_000 + owner, 100_000 + owner, follow_symlinks=False)
    subprocess.run(["setfacl", "-m", "u:101000:rw,g:101001:r", tree / "acl"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:101000:rwx", tree / "home"], check=True)
    capability = struct.pack("<IIIIII", 0x03000001, 0x400, 0, 0, 0, 100_000)
    os.setxattr(tree / "tool", "security.capability", capability)
    return tree


def _moved(fact: dict[str, Any], *, by: int) -> dict[str, Any]:
    """The facts of a file as they are for a range that begins ``by`` ids later."""
    moved = dict(fact) | {"owner": tuple(number + by for number in fact["owner"])}
    moved["xattrs"] = {name: _moved_xattr(name, value, by) for name, value in fact.get("xattrs", {}).items()}
    return moved


def _moved_xattr(name: str, value: bytes, by: int) -> bytes:
    if name == "security.capability":
        return value[:20] + struct.pack("<I", int.from_bytes(value[20:], "little") + by)
    if not name.startswith("system.posix_acl"):
        return value
    entries = [
        struct.pack("<HHI", tag, permissions, number + (by if tag in {2, 8} else 0))
        for tag, permissions, number in struct.iter_unpack("<HHI", value[4:])
    ]
    return value[:4] + b"".join(entries)


@pytest.mark.component("setfacl")
async def test_a_tree_moves_to_another_range_with_all_that_names_an_id(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    result = await back_up(BackupRequest(tree, W, ids=HERE), store)
    with tarfile.open(store.root / "objects" / result.snapshot.tar_key) as archive:
        assert {(info.uid, info.gid) for info in archive} == {(0, 0), (1000, 1000)}
    await restore(RestoreRequest(tmp_path / "out", W, ids=THERE, sync=False), store)
    wanted = {name: _moved(fact, by=200_000) for name, fact in facts(tree).items()}
    got = {name: _moved(fact, by=0) for name, fact in facts(tmp_path / "out").items()}
    assert got == wanted


@pytest.mark.component("setfacl")
async def test_a_part_of_a_tree_has_the_right_owners_above_it(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    await back_up(BackupRequest(tree, W, ids=HERE), store)
    only = RestoreRequest(tmp_path / "out", W, only=("home/user/file",), ids=THERE, sync=False)
    await restore(only, store)
    assert [(tmp_path / "out" / name).stat().st_uid for name in ("home", "home/user")] == [300_000, 301_000]


@pytest.mark.component("setfacl")
async def test_another_map_copies_nothing_of_the_last_backup(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    (tree / "large").write_bytes(bytes(range(256)) * (8 << 12))
    os.chown(tree / "large", 100_000, 100_000)
    wait_past_racy_window(tree)
    await back_up(BackupRequest(tree, W, ids=HERE), store)
    assert (await back_up(BackupRequest(tree, W, ids=HERE), store)).copied_bytes > 7 << 20
    shifted = IdMap.parse(["10:100000:65536"], [])
    result = await back_up(BackupRequest(tree, W, ids=shifted), store)
    assert (result.copied_bytes, result.note) == (0, "full backup: the id map is another one")
    await restore(RestoreRequest(tmp_path / "out", W, ids=shifted, sync=False), store)
    assert facts(tmp_path / "out") == facts(tree)


@pytest.mark.component("setfacl")
async def test_an_id_outside_the_map_stops_the_backup_and_the_restore(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    await back_up(BackupRequest(tree, W, ids=HERE), store)
    few = IdMap.parse(["0:300000:1000"], [])
    with pytest.raises(IdUnmapped, match="uid 1000"):
        await restore(RestoreRequest(tmp_path / "out", W, ids=few, sync=False), store)
    assert not (tmp_path / "out").exists()
    os.chown(tree / "acl", 0, 0)
    with pytest.raises(IdUnmapped, match="'acl' belongs to uid 0"):
        await back_up(BackupRequest(tree, W, ids=HERE), store)


@pytest.mark.component("setfacl")
def test_the_commands_take_maps(tree: Path, tmp_path: Path) -> None:
    lapstrake = [sys.executable, "-c", "from cli.main import main; main()"]
    where = ["--workspace", str(W), "--store", f"file://{tmp_path}/store"]
    run = [*lapstrake, "backup", str(tree), *where, "--uid-map", "0:100000:65536"]
    subprocess.run(run, check=True, capture_output=True)
    out = tmp_path / "out"
    run = [*lapstrake, "restore", str(out), *where, "--uid-map", "0:300000:65536"]
    subprocess.run([*run, "--gid-map", "0:500000:65536"], check=True, capture_output=True)
    assert ((out / "acl").stat().st_uid, (out / "acl").stat().st_gid) == (300_000, 500_000)
    shutil.rmtree(out)
    done = subprocess.run([*run, "--gid-map", "0:5"], check=False, capture_output=True, text=True)
    assert done.returncode == 4
    assert "invalid id map '0:5'" in done.stderr
