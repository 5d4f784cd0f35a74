"""Other people's tars, and ours in other people's hands."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from content.backup import BackupRequest, back_up
from content.errors import LocalDiskError
from content.foreign import unpack_file
from content.keys import Workspace
from content.objects.directory import DirectoryObjectStore
from content.objects.opening import StoreOptions, open_store
from content.restore import RestoreRequest, restore
from content.verify import verify
from tests.support.s3 import S3Server
from tests.support.trees import facts, make_tree

W = Workspace("someone", "project")


def _without(wanted, *, xattrs: bool = True, sub_second: bool = True):
    """``wanted`` as a tool of fewer abilities keeps it."""
    made = {}
    for name, fact in wanted.items():
        kept = dict(fact)
        if not xattrs:
            kept.pop("xattrs", None)
        if not sub_second:
            kept["mtime_ns"] //= 1_000_000_000
        made[name] = kept
    return made


async def _our_tar(tree: Path, tmp_path: Path) -> Path:
    store = DirectoryObjectStore(tmp_path / "store")
    result = await back_up(BackupRequest(tree, W), store)
    return store.root / "objects" / result.snapshot.tar_key


@pytest.mark.component("tar")
async def test_gnu_tar_reads_ours_without_a_loss(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    tar = await _our_tar(tree, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-xpf", tar, "-C", out], check=True, capture_output=True
    )
    assert facts(out) == facts(tree)
    assert (out / "sparse").stat().st_blocks * 512 < 5 << 20


@pytest.mark.component("bsdtar")
async def test_bsdtar_reads_ours(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    tar = await _our_tar(tree, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["bsdtar", "-xpf", tar, "-C", out], check=True, capture_output=True)
    got, wanted = dict(facts(out)), dict(facts(tree))
    del got["."], wanted["."]  # bsdtar does not give the directory it stands in its times
    assert got == wanted


async def test_python_reads_ours(tmp_path: Path) -> None:
    """Names, types, sizes, modes, owners; its times are floats, which lose nanoseconds."""
    tree = make_tree(tmp_path / "tree")
    with tarfile.open(await _our_tar(tree, tmp_path)) as archive:
        listed = {info.name.rstrip("/") or ".": info for info in archive}
    wanted = facts(tree)
    assert set(listed) == set(wanted)
    for name, fact in wanted.items():
        assert listed[name].mode == fact["mode"] & 0o7777
        if "content" in fact and not listed[name].islnk():
            assert listed[name].size == len(fact["content"])


@pytest.mark.parametrize(
    ("command", "keeps"),
    [
        (["tar", "--format=pax", "--xattrs", "-S", "-cf"], {}),
        (["tar", "--format=pax", "--xattrs", "--sparse-version=0.1", "-S", "-cf"], {}),
        (["tar", "--format=gnu", "-S", "-cf"], {"xattrs": False, "sub_second": False}),
        (["bsdtar", "--format=pax", "-cf"], {}),
        (["bsdtar", "--format=gnutar", "-cf"], {"xattrs": False, "sub_second": False}),
    ],
    ids=["gnu-pax", "gnu-pax-sparse-0.1", "gnu", "bsdtar-pax", "bsdtar-gnutar"],
)
async def test_ours_reads_tars_of_others(tmp_path: Path, command: list[str], keeps: dict[str, bool]) -> None:
    tree = make_tree(tmp_path / "tree")
    subprocess.run([*command, tmp_path / "their.tar", "-C", tree, "."], check=True)
    await unpack_file(tmp_path / "their.tar", tmp_path / "out")
    assert _without(facts(tmp_path / "out"), **keeps) == _without(facts(tree), **keeps)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
async def test_ours_reads_tars_of_python(tmp_path: Path, form: int) -> None:
    tree = make_tree(tmp_path / "tree")
    with tarfile.open(tmp_path / "their.tar", "w", format=form) as archive:
        archive.add(tree, ".")
    await unpack_file(tmp_path / "their.tar", tmp_path / "out")
    keeps = {"xattrs": False, "sub_second": False}
    assert _without(facts(tmp_path / "out"), **keeps) == _without(facts(tree), **keeps)


async def test_a_sparse_terabyte_stays_small(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "huge").open("wb") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), b"somewhere in the middle", 1 << 39)
    store = DirectoryObjectStore(tmp_path / "store")
    result = await back_up(BackupRequest(tree, W), store)
    assert result.snapshot.tar_bytes < 100_000
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    status = (tmp_path / "out" / "huge").stat()
    assert (status.st_size, status.st_blocks * 512 < 100_000) == (1 << 40, True)
    with (tmp_path / "out" / "huge").open("rb") as file:
        assert os.pread(file.fileno(), 23, 1 << 39) == b"somewhere in the middle"


async def test_two_generations_on_a_real_s3_server(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    tree = make_tree(tmp_path / "tree")
    (tree / "large").write_bytes(os.urandom(20 << 20))
    options = StoreOptions(s3_endpoint=s3_server.endpoint)
    async with open_store(f"s3://{s3_server.bucket}/prefix", options) as store:
        await back_up(BackupRequest(tree, W), store)
        (tree / "new").write_bytes(b"new")
        second = await back_up(BackupRequest(tree, W), store)
        if s3_server.kind == "minio":
            assert second.copied_bytes > 15 << 20
        else:
            assert second.note == "full backup: the store cannot copy parts"
        await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
        assert not (await verify(store, second.snapshot)).problems
    assert facts(tmp_path / "out") == facts(tree)


async def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalDiskError, match=r"none\.tar: No such file"):
        await unpack_file(tmp_path / "none.tar", tmp_path / "out")
