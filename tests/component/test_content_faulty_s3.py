"""Backups and restores through a proxy that has bad days, before a real S3 server.

Whatever it does: what ends well is right, what does not says so, and what was committed before stays.
"""

import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from content.backup import BackupRequest, BackupResult, back_up
from content.catalog import Catalog
from content.errors import ArchiveCorrupt, ContentError, ObjectCorrupt, StoreDenied, StoreRefused
from content.errors import StoreUnavailable as Unavailable
from content.keys import Workspace
from content.maintenance import sweep
from content.objects.base import MultipartStore, StoreProperties
from content.objects.opening import StoreOptions, open_store
from content.objects.probe import probe
from content.restore import RestoreRequest, restore
from content.verify import verify
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, s3_server
from tests.support.s3_proxy import (
    ActThenDrop,
    Answer,
    CutAnswer,
    ErrorInBody,
    Fault,
    ResetAnswer,
    ResetRequest,
    S3Proxy,
    Step,
    Swallow,
    WrongBytesSent,
    WrongBytesServed,
)
from tests.support.trees import facts, make_tree, wait_past_racy_window

W = Workspace("someone", "project")
ALWAYS = 300
pytestmark = pytest.mark.component("minio")
E500, SLOW, EXPIRED = Answer(500, "InternalError"), Answer(503, "SlowDown"), Answer(403, "ExpiredToken")


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


_seen: list[StoreProperties] = []


@pytest.fixture
async def store(proxy: S3Proxy, minio: S3Server, tmp_path: Path) -> AsyncIterator[MultipartStore]:
    """Probed once for all tests."""
    if not _seen:
        async with open_store(
            f"s3://{minio.bucket}/probed", StoreOptions(s3_endpoint=proxy.endpoint)
        ) as store:
            _seen.append(store.properties)
    options = StoreOptions(s3_endpoint=proxy.endpoint, known=_seen[0])
    async with open_store(f"s3://{minio.bucket}/{tmp_path.name}", options) as store:
        yield store


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Large enough for two parts, and for the second backup to copy."""
    tree = make_tree(tmp_path / "tree", files=3)
    (tree / "large").write_bytes(random.Random(5).randbytes(14 << 20))
    wait_past_racy_window(tree)
    return tree


async def _backup(tree: Path, store: MultipartStore) -> BackupResult:
    return await back_up(BackupRequest(tree, W), store)


async def _all_is_well(store: MultipartStore, tmp_path: Path, wanted) -> None:
    """Every snapshot there is proves good, the latest is ``wanted``, and nothing else lies about."""
    for snapshot in (await Catalog(store, W).load()).pointer.snapshots:
        assert not (await verify(store, snapshot)).problems
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert facts(tmp_path / "out") == wanted


BACKUP_HEALS: dict[str, tuple[Step, list[Fault | None]]] = {
    "begin-500": ("begin", [E500]),
    "begin-answer-lost": ("begin", [ActThenDrop()]),
    "part-500": ("part", [E500]),
    "part-slow-down": ("part", [SLOW, SLOW]),
    "part-reset-mid-body": ("part", [ResetRequest(3 << 20)]),
    "part-answer-lost": ("part", [ActThenDrop()]),
    "part-damaged-on-the-way": ("part", [WrongBytesSent(1000)]),
    "copy-500": ("copy", [E500]),
    "copy-error-in-200": ("copy", [ErrorInBody()]),
    "copy-answer-lost": ("copy", [ActThenDrop()]),
    "complete-500": ("complete", [E500]),
    "complete-error-in-200": ("complete", [ErrorInBody()]),
    "complete-answer-lost": ("complete", [ActThenDrop()]),
    "complete-answer-lost-and-look-fails": ("complete", [ActThenDrop()]),
    "stat-500": ("stat", [E500]),
    "index-503": ("index", [SLOW]),
    "index-damaged-on-the-way": ("index", [WrongBytesSent(10)]),
    "index-answer-lost": ("index", [ActThenDrop()]),
    "pointer-500": ("pointer", [E500]),
    "pointer-answer-lost": ("pointer", [ActThenDrop()]),
    "pointer-damaged-on-the-way": ("pointer", [WrongBytesSent(100)]),
    "read-pointer-reset": ("read_pointer", [ResetAnswer(50)]),
    "read-index-reset": ("read_index", [ResetAnswer(100)]),
    "read-index-damaged": ("read_index", [WrongBytesServed(100)]),
}


@pytest.mark.parametrize("case", BACKUP_HEALS)
async def test_a_backup_survives_what_passes(
    tree: Path, store: MultipartStore, proxy: S3Proxy, tmp_path: Path, case: str
) -> None:
    await _backup(tree, store)
    (tree / "more").write_bytes(os.urandom(5 << 20))
    step, faults = BACKUP_HEALS[case]
    proxy.on(step, *faults)
    if case.endswith("look-fails"):
        proxy.on("stat", None, E500, E500)
    result = await _backup(tree, store)
    assert proxy.is_spent, "the fault was never met: this proves nothing"
    assert result.copied_bytes > 12 << 20
    assert [s.id for s in (await Catalog(store, W).load()).pointer.snapshots][-1] == result.snapshot.id
    await _all_is_well(store, tmp_path, facts(tree))


BACKUP_FAILS: dict[str, tuple[Step, list[Fault | None], type[ContentError]]] = {
    "credentials-expire-at-a-part": ("part", [EXPIRED] * ALWAYS, StoreDenied),
    "credentials-expire-at-the-end": ("complete", [EXPIRED] * ALWAYS, StoreDenied),
    "credentials-expire-at-the-pointer": ("pointer", [EXPIRED] * ALWAYS, StoreDenied),
    "a-part-is-missing": ("part", [Swallow()], StoreRefused),
    "a-copy-is-missing": ("copy", [Swallow()], StoreRefused),
    "parts-always-500": ("part", [E500] * ALWAYS, Unavailable),
    "complete-always-fails-in-200": ("complete", [ErrorInBody()] * ALWAYS, Unavailable),
    "no-such-upload": ("part", [Answer(404, "NoSuchUpload")], ContentError),
    "pointer-always-503": ("pointer", [SLOW] * ALWAYS, ContentError),
}


@pytest.mark.parametrize("case", BACKUP_FAILS)
async def test_a_backup_that_cannot_be_made_says_so_and_leaves_the_last_one(
    tree: Path, store: MultipartStore, proxy: S3Proxy, tmp_path: Path, case: str
) -> None:
    first = await _backup(tree, store)
    wanted = facts(tree)
    (tree / "more").write_bytes(os.urandom(5 << 20))
    step, faults, error = BACKUP_FAILS[case]
    proxy.on(step, *faults)
    with pytest.raises(error):
        await _backup(tree, store)
    proxy.let_go()
    assert await Catalog(store, W).snapshot(None) == first.snapshot
    await _all_is_well(store, tmp_path, wanted)
    swept = await sweep(store, Catalog(store, W), older_than_s=-60)
    assert all(first.snapshot.id not in key for key in [*swept.objects, *swept.uploads])
    assert not (await verify(store, first.snapshot)).problems


RESTORE_HEALS: dict[str, tuple[Step, list[Fault | None]]] = {
    "read-500": ("read_tar", [E500]),
    "slow-down": ("read_tar", [SLOW, SLOW]),
    "reset-mid-body": ("read_tar", [ResetAnswer(100_000), None, ResetAnswer(7)]),
    "cut": ("read_tar", [CutAnswer()]),
    "wrong-bytes-small-files": ("read_tar", [WrongBytesServed(20_000)]),
    "index-wrong-bytes": ("read_index", [WrongBytesServed(77)]),
    "index-cut": ("read_index", [CutAnswer()]),
    "pointer-reset": ("read_pointer", [ResetAnswer(9)]),
}


@pytest.mark.parametrize("case", RESTORE_HEALS)
async def test_a_restore_survives_what_passes(
    tree: Path, store: MultipartStore, proxy: S3Proxy, tmp_path: Path, case: str
) -> None:
    await _backup(tree, store)
    step, faults = RESTORE_HEALS[case]
    proxy.on(step, *faults)
    await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert proxy.is_spent, "the fault was never met: this proves nothing"
    assert facts(tmp_path / "out") == facts(tree)


@pytest.mark.parametrize(
    "faults",
    [[WrongBytesServed(5)], [WrongBytesServed(1000)], [None, WrongBytesServed(1000)]],
    ids=["its name", "its beginning", "a later piece"],
)
async def test_a_large_file_that_was_damaged_on_the_way_is_fetched_again(
    tree: Path, store: MultipartStore, proxy: S3Proxy, tmp_path: Path, faults: list[Fault | None]
) -> None:
    await _backup(tree, store)
    proxy.on("read_tar", *faults)
    request = RestoreRequest(tmp_path / "out", W, only=("large",), sync=False)
    result = await restore(request, store)
    assert proxy.is_spent, "the fault was never met: this proves nothing"
    assert result.entries == 1
    assert facts(tmp_path / "out" / "large") == facts(tree / "large")


RESTORE_FAILS: dict[str, tuple[Step, list[Fault | None], type[ContentError]]] = {
    "wrong-bytes": ("read_tar", [WrongBytesServed(1000)] * ALWAYS, ArchiveCorrupt),
    "always-500": ("read_tar", [E500] * ALWAYS, Unavailable),
    "expired": ("read_tar", [EXPIRED] * ALWAYS, StoreDenied),
    "pointer-wrong-bytes": ("read_pointer", [WrongBytesServed(60)], ObjectCorrupt),
}


@pytest.mark.parametrize("case", RESTORE_FAILS)
async def test_a_restore_that_cannot_be_right_leaves_no_target(
    tree: Path, store: MultipartStore, proxy: S3Proxy, tmp_path: Path, case: str
) -> None:
    await _backup(tree, store)
    step, faults, error = RESTORE_FAILS[case]
    proxy.on(step, *faults)
    with pytest.raises(error):
        await restore(RestoreRequest(tmp_path / "out", W, sync=False), store)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".lapstrake-staging-*"))


@pytest.mark.parametrize("faults", [[WrongBytesServed(1000)], [None, WrongBytesServed(1000)]])
async def test_bytes_damaged_on_the_way_are_no_damage_of_the_snapshot(
    tree: Path, store: MultipartStore, proxy: S3Proxy, faults: list[Fault | None]
) -> None:
    snapshot = (await _backup(tree, store)).snapshot
    proxy.on("read_tar", *faults)
    assert not (await verify(store, snapshot)).problems
    assert proxy.is_spent, "the fault was never met: this proves nothing"


async def test_what_the_server_can_do_is_not_misjudged_on_a_bad_day(
    store: MultipartStore, proxy: S3Proxy
) -> None:
    """A probe that met a passing fault must not switch a check off."""
    seen = await probe(store, lambda _: None)
    proxy.on("probe", None, SLOW, None, E500)
    assert await probe(store, lambda _: None) == seen
