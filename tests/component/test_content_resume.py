"""An upload that was interrupted is continued, and never with bytes that are not the tree's."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from content import keys
from content.backup import BackupRequest, BackupResult, back_up
from content.catalog import Catalog
from content.errors import StoreUnavailable, WorkspaceBusy
from content.journal import JournalDirectory
from content.keys import Workspace
from content.maintenance import sweep
from content.objects.base import MultipartStore, Upload
from content.objects.directory import DirectoryObjectStore
from content.objects.opening import StoreOptions, open_store, wrapped
from content.restore import RestoreRequest, restore
from content.resume import MAX_AGE_S
from content.verify import verify
from servicekit.testing.fake_clock import FakeClock
from servicekit.throttle import Throttle
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, s3_server
from tests.support.s3_proxy import Answer, S3Proxy
from tests.support.trees import facts, wait_past_racy_window

W = Workspace("someone", "project")


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server("minio", tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture
async def proxy(minio: S3Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Proxy]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    async with S3Proxy(minio.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def store(proxy: S3Proxy, minio: S3Server, tmp_path: Path) -> AsyncIterator[MultipartStore]:
    options = StoreOptions(s3_endpoint=proxy.endpoint)
    async with open_store(f"s3://{minio.bucket}/{tmp_path.name}", options) as store:
        yield store


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five parts: one small file, then four of which each fills the most of one, then a small one."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"first")
    for name in "bcde":
        (tree / name).write_bytes(os.urandom(9 << 20))
    (tree / "z").write_bytes(b"last")
    return tree


@pytest.fixture
def journals(tmp_path: Path) -> JournalDirectory:
    return JournalDirectory(tmp_path / "state")


async def _interrupted(tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory) -> None:
    """A backup that is cancelled when all parts but the third have arrived."""
    hold = proxy.hold("part", "half", let_pass=2)
    running = asyncio.create_task(back_up(BackupRequest(tree, W), store, journals=journals))
    await hold.reached.wait()
    await proxy.await_done("part", 4)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    proxy.let_go()


async def _proven(
    result: BackupResult, store: MultipartStore, tree: Path, tmp_path: Path, keys_begun: Sequence[str] = ()
) -> None:
    assert not (await verify(store, result.snapshot)).problems
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert facts(tmp_path / "out") == facts(tree)
    left = await sweep(store, Catalog(store, W), older_than_s=-60, dry_run=True)
    assert (left.objects, left.uploads) == ([], [])
    for key in keys_begun:  # MinIO lists the uploads of a key only when it is told the key
        assert [upload async for upload in store.list_uploads(key)] == []


def _keys(proxy: S3Proxy, tmp_path: Path) -> list[str]:
    assert proxy.begun
    return [path.partition(f"/{tmp_path.name}/")[2] for path in proxy.begun]


@pytest.mark.component("minio")
async def test_only_what_is_missing_is_sent(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory, tmp_path: Path
) -> None:
    await _interrupted(tree, store, proxy, journals)
    before = proxy.part_bytes
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    # A part whose answer was under way when the backup stopped is not noted, and is sent again.
    assert before >= result.resumed_bytes >= before - 3 * (8 << 20) > 0
    assert proxy.part_bytes == before + result.snapshot.tar_bytes - result.resumed_bytes
    await _proven(result, store, tree, tmp_path, _keys(proxy, tmp_path))


@pytest.mark.component("minio")
async def test_a_second_backup_takes_over_what_was_copied_too(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory, tmp_path: Path
) -> None:
    wait_past_racy_window(tree)
    await back_up(BackupRequest(tree, W), store, journals=journals)
    (tree / "new").write_bytes(os.urandom(20 << 20))
    hold = proxy.hold("complete", "before")
    running = asyncio.create_task(back_up(BackupRequest(tree, W), store, journals=journals))
    await hold.reached.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    proxy.let_go()
    sent, copied = proxy.done["part"], proxy.done["copy"]
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    assert (proxy.done["part"], proxy.done["copy"]) == (sent, copied)
    assert result.copied_bytes > 30 << 20
    assert result.resumed_bytes == result.snapshot.tar_bytes
    await _proven(result, store, tree, tmp_path, _keys(proxy, tmp_path))


def _edit_in_place(tree: Path) -> None:
    status = (tree / "c").stat()
    with (tree / "c").open("r+b") as file:
        file.write(b"another beginning")
    os.utime(tree / "c", ns=(status.st_atime_ns, status.st_mtime_ns))


def _grow(tree: Path) -> None:
    (tree / "a").write_bytes(os.urandom(5000))


def _delete(tree: Path) -> None:
    (tree / "b").unlink()


def _flip_type(tree: Path) -> None:
    (tree / "d").unlink()
    (tree / "d").symlink_to("b")


@pytest.mark.component("minio")
@pytest.mark.parametrize("edit", [_edit_in_place, _grow, _delete, _flip_type])
async def test_what_changed_since_is_in_the_snapshot_as_it_is_now(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory, tmp_path: Path, edit
) -> None:
    await _interrupted(tree, store, proxy, journals)
    edit(tree)
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    assert result.resumed_bytes < result.snapshot.tar_bytes
    if edit is _edit_in_place:
        assert result.resumed_bytes > 0
    await _proven(result, store, tree, tmp_path, _keys(proxy, tmp_path))


@pytest.mark.component("minio")
async def test_an_upload_that_the_store_forgot_is_started_again(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory, tmp_path: Path
) -> None:
    await _interrupted(tree, store, proxy, journals)
    async with journals.open(store.name, W) as journal:
        pending = await journal.pending()
    assert pending is not None
    assert pending.upload_id is not None
    await store.abort_upload(Upload(pending.key, pending.upload_id))
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    assert result.note is not None
    assert "the store does not have it any more" in result.note
    assert result.resumed_bytes == 0
    await _proven(result, store, tree, tmp_path, _keys(proxy, tmp_path))


@pytest.mark.component("minio")
async def test_an_upload_planned_on_another_snapshot_is_given_up_and_removed(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory, tmp_path: Path
) -> None:
    await _interrupted(tree, store, proxy, journals)
    await back_up(BackupRequest(tree, W), store, journals=JournalDirectory(tmp_path / "another-node"))
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    assert result.note is not None
    assert "another backup was committed since" in result.note
    await _proven(result, store, tree, tmp_path, _keys(proxy, tmp_path))


@pytest.mark.component("minio")
async def test_an_upload_that_may_be_swept_any_moment_is_not_continued(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory, tmp_path: Path
) -> None:
    await _interrupted(tree, store, proxy, journals)
    later = FakeClock(tree.stat().st_mtime + MAX_AGE_S + 3600)
    result = await back_up(BackupRequest(tree, W), store, journals=journals, clock=later)
    assert result.note is not None
    assert "it is too old" in result.note
    await _proven(result, store, tree, tmp_path, _keys(proxy, tmp_path))


@pytest.mark.component("minio")
async def test_a_failure_that_may_pass_leaves_the_upload_and_another_does_not(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory
) -> None:
    proxy.on("complete", *[Answer(503, "SlowDown")] * 9)
    with pytest.raises(StoreUnavailable):
        await back_up(BackupRequest(tree, W), store, journals=journals)
    proxy.let_go()
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    assert result.resumed_bytes == result.snapshot.tar_bytes


@pytest.mark.component("minio")
async def test_a_workspace_is_backed_up_by_one_process_at_a_time(
    tree: Path, store: MultipartStore, proxy: S3Proxy, journals: JournalDirectory
) -> None:
    hold = proxy.hold("part", "before")
    running = asyncio.create_task(back_up(BackupRequest(tree, W), store, journals=journals))
    await hold.reached.wait()
    with pytest.raises(WorkspaceBusy, match="another backup of it is running"):
        await back_up(BackupRequest(tree, W), store, journals=journals)
    proxy.let_go()
    await running


async def _interrupted_directory(tree: Path, root: Path, journals: JournalDirectory) -> DirectoryObjectStore:
    raw = DirectoryObjectStore(root)
    slow = wrapped(raw, StoreOptions(sent=Throttle(16 << 20)))
    running = asyncio.create_task(back_up(BackupRequest(tree, W), slow, journals=journals))
    while sum(path.read_bytes().count(b"\n") for path in root.glob("uploads/*/parts")) < 2:
        await asyncio.sleep(0.01)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return raw


async def test_a_directory_store_continues_too(
    tree: Path, journals: JournalDirectory, tmp_path: Path
) -> None:
    store = await _interrupted_directory(tree, tmp_path / "store", journals)
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    assert result.resumed_bytes >= 8 << 20
    assert result.resumed_bytes + result.sent_bytes < result.snapshot.tar_bytes + 10_000
    await _proven(result, store, tree, tmp_path)


async def test_a_part_that_was_damaged_meanwhile_is_sent_again(
    tree: Path, journals: JournalDirectory, tmp_path: Path
) -> None:
    store = await _interrupted_directory(tree, tmp_path / "store", journals)
    data = next((tmp_path / "store").glob("uploads/*/data"))
    with data.open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    await _proven(result, store, tree, tmp_path)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 0x55
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * 999)


def _lie(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as journal:
        journal.execute("UPDATE parts SET crc32 = crc32 + 1, etag = 'x'")
        journal.commit()


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_flip, _cut, _extend, _lie, _replace_by_directory])
async def test_a_damaged_journal_costs_bytes_and_no_snapshot(
    tree: Path, journals: JournalDirectory, tmp_path: Path, damage
) -> None:
    store = await _interrupted_directory(tree, tmp_path / "store", journals)
    damage(next((tmp_path / "state").glob("*.sqlite")))
    result = await back_up(BackupRequest(tree, W), store, journals=journals)
    assert not (await verify(store, result.snapshot)).problems
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert facts(tmp_path / "out") == facts(tree)


async def test_without_a_place_for_the_journal_a_backup_is_made_all_the_same(
    tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    store = DirectoryObjectStore(tmp_path / "store")
    result = await back_up(BackupRequest(tree, W), store, journals=JournalDirectory(tmp_path / "file"))
    assert (await store.stat(keys.tar_key(W, result.snapshot.id))).size_bytes == result.snapshot.tar_bytes
