"""A lost index costs time; what it said is in the tar."""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from content import sidecar, transfer
from content.archive.index import Entry, IndexReader
from content.backup import BackupRequest, BackupResult, back_up
from content.catalog import Catalog
from content.errors import FormatUnsupported, IntegrityError, InvalidInput, StoreUnavailable
from content.keys import Workspace
from content.objects.directory import DirectoryObjectStore
from content.restore import RestoreRequest, restore
from content.snapshot import Snapshot
from content.verify import verify
from tests.support.trees import facts, make_tree, wait_past_racy_window

W = Workspace("someone", "project")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryObjectStore:
    return DirectoryObjectStore(tmp_path / "store")


@pytest.fixture
async def results(tmp_path: Path, store: DirectoryObjectStore) -> list[BackupResult]:
    """A second backup over a first, with dead members, cut ones, directories written twice, hard links."""
    tree = make_tree(tmp_path / "tree", files=12)
    for number in range(6):
        (tree / f"large-{number}").write_bytes(number.to_bytes(1, "big") * (3 << 20))
    wait_past_racy_window(tree)
    first = await back_up(BackupRequest(tree, W), store)
    (tree / "large-2").write_bytes(b"replaced")
    (tree / "read-only" / "inside").write_bytes(b"replaced as well")
    (tree / "symlink").unlink()
    second = await back_up(BackupRequest(tree, W), store)
    assert second.copied_bytes > 10 << 20
    return [first, second]


async def _entries(store: DirectoryObjectStore, snapshot: Snapshot) -> list[Entry]:
    with tempfile.TemporaryFile() as file:
        await sidecar.fetch_or_rebuild(store, snapshot, file)
        return list(IndexReader(file).entries())


def _object(store: DirectoryObjectStore, key: str) -> Path:
    return store.root / "objects" / key


def _comparable(entry: Entry) -> Entry:
    """Without what no tar says: ctime, inode, the size of what is no regular file, all of a link's count."""
    size = entry.size if entry.type == "f" and not entry.link else 0
    nlink = min(entry.nlink, 2) if entry.type == "f" else 1
    return entry._replace(ctime_ns=0, ino=0, size=size, nlink=nlink, segment=0, at=0)


async def test_a_rebuilt_index_says_what_the_lost_one_said(
    results: list[BackupResult], store: DirectoryObjectStore
) -> None:
    for result in results:
        lost = await _entries(store, result.snapshot)
        _object(store, result.snapshot.index_key).unlink()
        rebuilt = await _entries(store, result.snapshot)
        assert list(map(_comparable, rebuilt)) == list(map(_comparable, lost))


@pytest.mark.parametrize("damage", ["gone", "flip", "cut", "extend"])
async def test_a_restore_without_an_index_is_complete_and_says_so(
    results: list[BackupResult], store: DirectoryObjectStore, tmp_path: Path, damage: str
) -> None:
    path = _object(store, results[-1].snapshot.index_key)
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        flipped = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes({"flip": flipped, "cut": data[:-9], "extend": data + b"x"}[damage])
    assert (await verify(store, results[-1].snapshot)).problems
    restored = await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert restored.rebuilt_index
    assert facts(tmp_path / "out") == facts(tmp_path / "tree")
    await restore(RestoreRequest(tmp_path / "one", W, only=("large-2",), sync=False), store)
    assert [item.name for item in (tmp_path / "one").iterdir()] == ["large-2"]


async def test_a_repaired_snapshot_proves_good_and_is_backed_up_upon(
    results: list[BackupResult], store: DirectoryObjectStore, tmp_path: Path
) -> None:
    snapshot = results[-1].snapshot
    _object(store, snapshot.index_key).unlink()
    command = [sys.executable, "-c", "from cli.main import main; main()", "snapshots", "rebuild-index"]
    where = ["--workspace", str(W), "--store", store.name, "--json"]
    for rebuilt in (True, False):
        done = subprocess.run([*command, *where], check=True, capture_output=True)
        assert json.loads(done.stdout)["rebuilt"] is rebuilt
    repaired = await Catalog(store, W).snapshot(snapshot.id)
    assert not (await verify(store, repaired)).problems
    (tmp_path / "tree" / "large-0").unlink()
    after = await back_up(BackupRequest(tmp_path / "tree", W), store)
    assert not (await verify(store, after.snapshot)).problems
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert facts(tmp_path / "out") == facts(tmp_path / "tree")


async def test_an_index_of_a_newer_format_is_refused_and_not_made_again(
    results: list[BackupResult], store: DirectoryObjectStore, tmp_path: Path
) -> None:
    snapshot = results[-1].snapshot
    plain = zstandard.ZstdDecompressor().stream_reader(
        _object(store, snapshot.index_key).open("rb"), read_across_frames=True
    )
    with plain:
        newer = plain.read().replace(b'"format_version":1', b'"format_version":2', 1)
    stored = await transfer.put_file(store, snapshot.index_key, io.BytesIO(zstandard.compress(newer)))
    record = replace(snapshot, index_bytes=stored.size_bytes, index_sha256=stored.sha256)
    await Catalog(store, W).change(
        lambda now: replace(now, snapshots=tuple(record if s.id == record.id else s for s in now.snapshots))
    )
    with pytest.raises(FormatUnsupported, match="format version 2; this lapstrake reads 1"):
        await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)


async def test_a_sample_reads_less_and_all_samples_together_find_the_damage(
    results: list[BackupResult], store: DirectoryObjectStore
) -> None:
    snapshot = results[0].snapshot
    assert (await verify(store, snapshot, sample=0.3)).bytes_read < snapshot.tar_bytes // 2
    path = _object(store, snapshot.tar_key)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = [bool((await verify(store, snapshot, sample=0.3, seed=seed)).problems) for seed in range(12)]
    assert set(found) == {True, False}


@pytest.mark.parametrize("damage", ["flip", "cut", "header"])
async def test_no_index_is_made_from_a_damaged_tar(
    results: list[BackupResult], store: DirectoryObjectStore, tmp_path: Path, damage: str
) -> None:
    snapshot = results[-1].snapshot
    shutil.rmtree(_object(store, snapshot.index_key).parent)
    path = _object(store, snapshot.tar_key)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-5000:]
    else:
        data[10 if damage == "header" else len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        (IntegrityError, InvalidInput, StoreUnavailable), match=r"corrupt|not a usable tar|it ends"
    ):
        await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert not (tmp_path / "out").exists()
