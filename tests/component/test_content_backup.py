"""Backup and restore over a directory store: nothing lost, nothing half-done believed."""

import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from content import keys
from content.backup import BackupRequest, BackupResult, back_up
from content.catalog import Catalog
from content.errors import (
    Fenced,
    IntegrityError,
    PathNotInSnapshot,
    PointerMoved,
    StoreUnavailable,
    TargetNotEmpty,
    TreeUnfinished,
)
from content.keys import Workspace
from content.maintenance import prune, sweep
from content.objects.base import MultipartStore, ObjectInfo, PartRef, Upload, UploadedPart
from content.objects.directory import DirectoryObjectStore
from content.objects.wrappers import Wrapper
from content.restore import RestoreRequest, restore
from content.retention import KeepRules
from content.verify import verify
from tests.support.trees import add_socket, facts, make_tree, wait_past_racy_window

W = Workspace("someone", "project")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryObjectStore:
    return DirectoryObjectStore(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


async def _backup(tree: Path, store: MultipartStore, **options) -> BackupResult:
    return await back_up(BackupRequest(tree, W, **options), store)


async def _restored(store: MultipartStore, target: Path, **options) -> Path:
    await restore(RestoreRequest(target, W, sync=False, **options), store)
    return target


async def test_a_restored_tree_equals_the_one_backed_up(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    result = await _backup(tree, store)
    assert result.left_out == []
    assert facts(await _restored(store, tmp_path / "out")) == facts(tree)
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < 5 << 20


async def test_what_is_not_in_the_backup_is_named(tree: Path, store: DirectoryObjectStore) -> None:
    add_socket(tree / "agent.sock")
    result = await _backup(tree, store, excludes=("*.txt", "!/keep.txt"))
    reasons = {item.path: item.reason for item in result.left_out}
    assert reasons["agent.sock"] == "a socket has no content"
    assert set(reasons.values()) == {"a socket has no content", "excluded"}


async def test_generations_of_changes_each_restore_alone(tmp_path: Path, store: DirectoryObjectStore) -> None:
    """Random edits between snapshots; part copies in the store; GNU tar sees the same tree as we do."""
    tree, rng = make_tree(tmp_path / "tree", files=60), random.Random(7)
    (tree / "large").write_bytes(rng.randbytes(12 << 20))
    many = tree / "many"
    many.mkdir()
    for number in range(60):
        (many / f"f{number}").write_bytes(rng.randbytes(200_000))
    wait_past_racy_window(tree)
    expected = {}
    for generation in range(5):
        result = await _backup(tree, store)
        expected[result.snapshot.id] = facts(tree)
        if generation:
            assert result.copied_bytes > 10 << 20
            assert result.sent_bytes < result.snapshot.tar_bytes // 2
        _mutate(tree, rng, generation)
        wait_past_racy_window(tree)
    for number, (snapshot_id, wanted) in enumerate(expected.items()):
        assert facts(await _restored(store, tmp_path / f"out{number}", snapshot_id=snapshot_id)) == wanted
        untarred = tmp_path / f"tar{number}"
        untarred.mkdir()
        tar = store.root / "objects" / keys.tar_key(W, snapshot_id)
        command = ["tar", "--xattrs", "--xattrs-include=*", "--warning=none", "-xpf", tar, "-C", untarred]
        await asyncio.to_thread(subprocess.run, command, check=True)
        assert facts(untarred) == wanted
        shutil.rmtree(untarred)


def _mutate(tree: Path, rng: random.Random, generation: int) -> None:
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    edited, removed, flipped = rng.sample([path for path in files if "many" in str(path)], 3)
    edited.write_bytes(edited.read_bytes()[:100_000] + b"edited")
    removed.unlink()
    flipped.unlink()
    flipped.symlink_to("../large")
    (tree / "hard-1").write_bytes(b"changed through one name %d" % generation)
    (tree / f"new-{generation}").mkdir()
    (tree / f"new-{generation}" / "file").write_bytes(b"new")
    if generation == 2:
        shutil.rmtree(tree / "new-0")
        shutil.rmtree(tree / "dir-1", ignore_errors=True)
        (tree / "dir-1").write_bytes(b"was a directory") if not (tree / "dir-1").exists() else None


async def test_an_unchanged_tree_is_not_read_again(tmp_path: Path, store: DirectoryObjectStore) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(100):
        (tree / str(number)).write_bytes(bytes(100_000))
    wait_past_racy_window(tree)
    await _backup(tree, store)
    atimes = {path: path.stat().st_atime_ns for path in tree.iterdir()}
    again = await _backup(tree, store)
    assert (again.files_read, again.note) == (0, None)
    assert again.copied_bytes > 9 << 20
    assert {path: path.stat().st_atime_ns for path in tree.iterdir()} == atimes


async def test_hard_links_stay_joined_when_a_directory_of_some_is_renamed(
    tmp_path: Path, store: DirectoryObjectStore
) -> None:
    """Nothing about the files changes by that, only the paths of some of their names."""
    tree = tmp_path / "tree"
    (tree / "before").mkdir(parents=True)
    (tree / "large").write_bytes(os.urandom(9 << 20))
    for number in range(3):
        (tree / "before" / f"{number}").write_bytes(b"joined %d" % number)
        os.link(tree / "before" / f"{number}", tree / f"other-{number}")
    wait_past_racy_window(tree)
    await _backup(tree, store)
    (tree / "before").rename(tree / "z-after")
    assert (await _backup(tree, store)).copied_bytes > 8 << 20
    assert facts(await _restored(store, tmp_path / "out")) == facts(tree)


async def test_times_that_could_hide_an_edit_are_not_believed(
    tmp_path: Path, store: DirectoryObjectStore
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(60):
        (tree / str(number)).write_bytes(bytes(200_000))
    wait_past_racy_window(tree)
    (tree / "fresh").write_bytes(b"written in the tick of the walk, or after it")
    later_ns = time.time_ns() + 3_600_000_000_000
    os.utime(tree / "fresh", ns=(later_ns, later_ns))
    await _backup(tree, store)
    again = await _backup(tree, store)
    assert again.files_read == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "extend"])
@pytest.mark.parametrize("what", ["tar", "pointer"])
async def test_damage_is_found_and_nothing_is_restored(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path, what: str, damage: str
) -> None:
    snapshot = (await _backup(tree, store)).snapshot
    key = {"tar": snapshot.tar_key, "pointer": keys.pointer_key(W)}[what]
    _damage(store.root / "objects" / key, damage)
    if (what, damage) != ("tar", "extend"):  # bytes after the end are in nobody's way
        with pytest.raises(IntegrityError, match="corrupt"):
            await _restored(store, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".lapstrake-staging-*"))
    if what != "pointer":
        assert (await verify(store, snapshot)).problems


def _damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 3] ^= 1
    elif how == "cut":
        del data[-2000 if len(data) > 4000 else -1 :]
    else:
        data += b"x"
    path.write_bytes(data)


async def test_one_path_is_restored_with_little_reading(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    await _backup(tree, store)
    counting = _Counting(store)
    out = await _restored(counting, tmp_path / "out", only=("read-only/inside",))
    assert [path.name for path in out.rglob("*")] == ["read-only", "inside"]
    assert (out / "read-only").stat().st_mode == (tree / "read-only").stat().st_mode
    assert counting.opened == [keys.pointer_key(W)] + [
        key(W, (await Catalog(store, W).snapshot(None)).id) for key in (keys.index_key, keys.tar_key)
    ]
    with pytest.raises(PathNotInSnapshot):
        await _restored(store, tmp_path / "none", only=("not/there",))


class _Counting(Wrapper):
    def __init__(self, inner: MultipartStore) -> None:
        super().__init__(inner)
        self.opened: list[str] = []

    def open(self, key, span=None, *, if_match=None):
        self.opened.append(key)
        return self.inner.open(key, span, if_match=if_match)


async def test_an_agent_from_before_a_restart_elsewhere_is_fenced(
    tree: Path, store: DirectoryObjectStore
) -> None:
    await _backup(tree, store, incarnation=2)
    with pytest.raises(Fenced):
        await _backup(tree, store, incarnation=1)
    await _backup(tree, store, incarnation=3)
    assert len((await Catalog(store, W).load()).pointer.snapshots) == 2


async def test_of_two_backups_at_once_one_is_committed(tree: Path, store: DirectoryObjectStore) -> None:
    """Both begin from the same pointer; the later commit is refused, and names why."""
    results = await asyncio.gather(*(_backup(tree, store) for _ in range(2)), return_exceptions=True)
    lost = [result for result in results if isinstance(result, PointerMoved)]
    kept = (await Catalog(store, W).load()).pointer.snapshots
    assert len(kept) == 2 - len(lost)
    for snapshot in kept:
        assert not (await verify(store, snapshot)).problems


async def test_a_tree_whose_restore_did_not_finish_is_not_backed_up(
    tree: Path, store: DirectoryObjectStore
) -> None:
    (tree / ".lapstrake-restoring").touch()
    with pytest.raises(TreeUnfinished):
        await _backup(tree, store)


async def test_a_directory_with_content_is_replaced_only_on_demand(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    await _backup(tree, store)
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(TargetNotEmpty):
        await _restored(store, target)
    assert (target / "mine").exists()
    assert facts(await _restored(store, target, replace=True)) == facts(tree)


async def test_pruning_keeps_the_latest_and_sweeping_finds_orphans(
    tree: Path, store: DirectoryObjectStore
) -> None:
    for _ in range(3):
        latest = (await _backup(tree, store)).snapshot
    orphan = keys.tar_key(W, keys.new_snapshot_id(0))
    await store.put(orphan, b"left by a crash")
    await store.create_upload(keys.tar_key(W, keys.new_snapshot_id(1)))
    catalog = Catalog(store, W)
    verdicts = await prune(store, catalog, KeepRules(last=1), dry_run=False)
    assert [bool(verdict.reasons) for verdict in verdicts] == [True, False, False]
    swept = await sweep(store, catalog, older_than_s=-60)
    assert (swept.objects, len(swept.uploads)) == ([orphan], 1)
    assert [info.key async for info in store.list(f"{W}/")] == [
        latest.tar_key,
        latest.index_key,
        keys.pointer_key(W),
    ]
    assert not (await verify(store, latest)).problems


@pytest.mark.parametrize("damage", ["gone", "cut"])
async def test_pruning_never_deletes_the_last_good_one(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path, damage: str
) -> None:
    """However the rules are, and although newer ones are listed."""
    wanted = facts(tree)
    snapshots = [(await _backup(tree, store)).snapshot for _ in range(4)]
    for snapshot in snapshots[2:]:
        path = store.root / "objects" / snapshot.tar_key
        path.unlink() if damage == "gone" else os.truncate(path, 1000)
    verdicts = await prune(store, Catalog(store, W), KeepRules(last=1), dry_run=False)
    kept = {verdict.snapshot.id: verdict.reasons for verdict in verdicts if verdict.reasons}
    assert kept == {snapshots[3].id: ("latest",), snapshots[1].id: ("last good", "last")}
    out = await _restored(store, tmp_path / "out", snapshot_id=snapshots[1].id)
    assert facts(out) == wanted


class _Failing(Wrapper):
    """Fails at one step, as a crash of the node there would."""

    def __init__(self, inner: MultipartStore, step: str) -> None:
        super().__init__(inner)
        self._step = step

    async def put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        self._fail("part")
        return await self.inner.put_part(upload, ref, data)

    async def complete_upload(self, upload: Upload, parts, crc32: int) -> ObjectInfo:
        self._fail("before-complete")
        done = await self.inner.complete_upload(upload, parts, crc32)
        self._fail("after-complete")
        return done

    async def put(self, key: str, data: bytes, **conditions) -> ObjectInfo:
        self._fail("pointer" if key.endswith("snapshots.json") else "index")
        return await self.inner.put(key, data, **conditions)

    def _fail(self, step: str) -> None:
        if step == self._step:
            raise RuntimeError(step)


@pytest.mark.parametrize("step", ["part", "before-complete", "after-complete", "index", "pointer"])
async def test_a_backup_that_stops_anywhere_leaves_the_last_one_whole(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path, step: str
) -> None:
    first = (await _backup(tree, store)).snapshot
    wanted = facts(tree)
    (tree / "later").write_bytes(b"after the first")
    with pytest.raises(RuntimeError, match=step):
        await _backup(tree, _Failing(store, step))
    assert (await Catalog(store, W).snapshot(None)) == first
    assert facts(await _restored(store, tmp_path / "out")) == wanted


class _LostAnswers(Wrapper):
    """Acts, and then the first answer to each kind of request is lost on its way back."""

    def __init__(self, inner: MultipartStore) -> None:
        super().__init__(inner)
        self.lost: set[str] = set()

    def _lose(self, what: str) -> None:
        if what not in self.lost:
            self.lost.add(what)
            raise StoreUnavailable(self.name, what, "the answer was lost")

    async def complete_upload(self, upload: Upload, parts, crc32: int) -> ObjectInfo:
        done = await self.inner.complete_upload(upload, parts, crc32)
        self._lose("complete")
        return done

    async def put(self, key: str, data: bytes, **conditions) -> ObjectInfo:
        done = await self.inner.put(key, data, **conditions)
        if conditions:
            self._lose("pointer")
        return done


async def test_answers_that_get_lost_are_settled_by_looking(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    losing = _LostAnswers(store)
    result = await _backup(tree, losing)
    assert losing.lost == {"complete", "pointer"}
    assert [s.id for s in (await Catalog(store, W).load()).pointer.snapshots] == [result.snapshot.id]
    assert facts(await _restored(store, tmp_path / "out")) == facts(tree)


class _WrongOnce(Wrapper):
    """Serves one damaged copy of the tar, as a bad cable would."""

    damaged = False

    @contextlib.asynccontextmanager
    async def open(self, key, span=None, *, if_match=None):
        async with self.inner.open(key, span, if_match=if_match) as reader:
            if key.endswith(".tar") and not self.damaged:
                self.damaged = True
                yield _Flipped(reader)
            else:
                yield reader


class _Flipped:
    def __init__(self, inner) -> None:
        self._inner = inner
        self.info = inner.info

    async def pour(self, sink, limit_bytes: int) -> int:
        return await self._inner.pour(lambda piece: sink(bytes([piece[0] ^ 1]) + piece[1:]), limit_bytes)


async def test_bytes_damaged_on_the_way_are_fetched_again(
    tree: Path, store: DirectoryObjectStore, tmp_path: Path
) -> None:
    await _backup(tree, store)
    wrong = _WrongOnce(store)
    assert facts(await _restored(wrong, tmp_path / "out")) == facts(tree)
    assert wrong.damaged


_SLOW = ("--limit-rate", "3MiB/s")


def _lapstrake(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from cli.main import main; main()", *map(str, arguments)]


async def test_kill_9_in_the_middle_of_a_part_loses_nothing(
    tmp_path: Path, store: DirectoryObjectStore
) -> None:
    tree = make_tree(tmp_path / "tree", files=5)
    first = (await _backup(tree, store)).snapshot
    wanted = facts(tree)
    (tree / "large").write_bytes(os.urandom(40 << 20))
    command = _lapstrake("backup", tree, "--workspace", W, "--store", store.name, *_SLOW)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in store.root.glob("uploads/*/parts")):
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert (await Catalog(store, W).snapshot(None)) == first
    assert facts(await _restored(store, tmp_path / "out")) == wanted
    after = (await _backup(tree, store)).snapshot
    assert facts(await _restored(store, tmp_path / "out2", snapshot_id=after.id)) == facts(tree)


async def test_kill_9_in_a_restore_leaves_no_target(tmp_path: Path, store: DirectoryObjectStore) -> None:
    tree = make_tree(tmp_path / "tree", files=5)
    (tree / "large").write_bytes(os.urandom(30 << 20))
    await _backup(tree, store)
    target = tmp_path / "out"
    command = _lapstrake("restore", target, "--workspace", W, "--store", store.name, *_SLOW)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob(".lapstrake-staging-out-*/large")):
        await asyncio.sleep(0.02)
    process.kill()
    await process.wait()
    assert not target.exists()
    half = next(tmp_path.glob(".lapstrake-staging-out-*"))
    with pytest.raises(TreeUnfinished):
        await _backup(half, store)


def _bad_inputs(tmp_path: Path) -> dict[str, tuple[list[object], int, str]]:
    store = f"file://{tmp_path}/store"
    common = ["--workspace", "a/b", "--store", store]
    (tmp_path / "tree").mkdir()
    (tmp_path / "evil.tar").write_bytes(_evil_tar())
    (tmp_path / "short.tar").write_bytes(_evil_tar(b"good")[:700])
    (tmp_path / "file").touch()
    unreachable = ["--workspace", "a/b", "--store", "s3://bucket", "--s3-endpoint", "http://127.0.0.1:9"]
    return {
        "no-directory": (["backup", tmp_path / "none", *common], 11, "No such file or directory"),
        "no-store": (["backup", tmp_path / "tree", *unreachable], 7, "s3://bucket cannot be used"),
        "bad-store": (["snapshots", "list", "--workspace", "a/b", "--store", "ftp://x"], 4, "invalid store"),
        "bad-workspace": (
            ["snapshots", "list", "--workspace", "../x", "--store", store],
            4,
            "invalid workspace",
        ),
        "no-backup": (["restore", tmp_path / "x", *common], 5, "has no backup"),
        "no-snapshot": (["snapshots", "verify", "nope", *common], 5, "has no snapshot nope"),
        "unwritable": (
            ["backup", tmp_path / "tree", "--workspace", "a/b", "--store", "file:///proc/x"],
            11,
            "/proc/x",
        ),
        "target-is-file": (["restore", tmp_path / "file", "--tar", tmp_path / "evil.tar"], 11, "file"),
        "evil-tar": (["restore", tmp_path / "x", "--tar", tmp_path / "evil.tar"], 4, "'../../evil' refused"),
        "short-tar": (["restore", tmp_path / "x", "--tar", tmp_path / "short.tar"], 4, "it ends too early"),
        "bad-pattern": (["backup", tmp_path / "tree", *common, "--exclude", "[z-a]"], 4, "exclude pattern"),
        "bad-rate": (["backup", tmp_path / "tree", *common, "--limit-rate", "fast"], 2, "--limit-rate"),
    }


def _evil_tar(name: bytes = b"../../evil") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo(name.decode())
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    return raw.getvalue()


@pytest.mark.parametrize(
    "case",
    [
        "no-directory",
        "no-store",
        "bad-store",
        "bad-workspace",
        "no-backup",
        "no-snapshot",
        "unwritable",
        "target-is-file",
        "evil-tar",
        "short-tar",
        "bad-pattern",
        "bad-rate",
    ],
)
def test_bad_input_is_one_clear_line_and_its_exit_code(tmp_path: Path, case: str) -> None:
    arguments, code, text = _bad_inputs(tmp_path)[case]
    environ = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    done = subprocess.run(
        _lapstrake(*arguments), capture_output=True, text=True, env=environ, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_json_has_the_documented_fields(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", files=3)
    common = ["--workspace", "a/b", "--store", f"file://{tmp_path}/store", "--json"]
    made = subprocess.run(_lapstrake("backup", tree, *common), capture_output=True, check=True)
    assert set(json.loads(made.stdout)) >= {
        "snapshot_id",
        "entries",
        "tar_bytes",
        "sent_bytes",
        "copied_bytes",
        "files_read",
        "left_out",
        "duration_s",
    }
    back = subprocess.run(_lapstrake("restore", tmp_path / "out", *common), capture_output=True, check=True)
    assert set(json.loads(back.stdout)) == {"snapshot_id", "entries", "bytes", "duration_s"}
    assert facts(tmp_path / "out") == facts(tree)
