"""SIGKILL at every boundary of a backup, a restore and a deletion; real processes, a real S3 server.

The ledger holds every snapshot that was reported as committed, with all that a restore must bring back. After
each kill every line of it must still restore.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from content.backup import BackupRequest, back_up
from content.catalog import Catalog
from content.journal import JournalDirectory
from content.keys import Workspace
from content.maintenance import sweep
from content.objects.opening import StoreOptions, open_store
from content.restore import RestoreRequest, restore
from content.verify import verify
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, s3_server
from tests.support.s3_proxy import S3Proxy, Step
from tests.support.trees import facts, make_tree

W = Workspace("someone", "project")
pytestmark = pytest.mark.component("minio")


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server("minio", tmp_path_factory.mktemp("minio")) as server:
        yield server


@dataclass
class Ledger:
    """Snapshots that somebody was told are safe."""

    store: str
    endpoint: str
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    async def check(self, scratch: Path) -> None:
        assert self.rows, "nothing was ever committed: this proves nothing"
        async with open_store(self.store, StoreOptions(s3_endpoint=self.endpoint)) as store:
            pointer = (await Catalog(store, W).load()).pointer
            for snapshot in pointer.snapshots:
                assert not (await verify(store, snapshot)).problems
            for number, (snapshot_id, wanted) in enumerate(self.rows.items()):
                out = scratch / f"ledger-{number}"
                await restore(RestoreRequest(out, W, snapshot_id, sync=False), store)
                assert facts(out) == wanted
                shutil.rmtree(out)


@dataclass
class Node:
    """Runs ``lapstrake`` against a server behind a proxy."""

    proxy: S3Proxy
    ledger: Ledger
    tree: Path
    state: Path

    def _argv(self, command: str, *arguments: object) -> list[str]:
        where = ["--workspace", W, "--store", self.ledger.store, "--s3-endpoint", self.proxy.endpoint]
        run = [sys.executable, "-c", "from cli.main import main; main()"]
        return [*run, *command.split(), *map(str, [*arguments, *where, "--json"])]

    async def start(self, command: str, *arguments: object) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *self._argv(command, *arguments), stdout=pipe, stderr=pipe
        )

    async def run(self, command: str, *arguments: object) -> dict[str, Any]:
        process = await self.start(command, *arguments)
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return dict(json.loads(out))

    async def start_backup(self) -> asyncio.subprocess.Process:
        return await self.start("backup", self.tree, "--state-dir", self.state)

    async def back_up(self) -> dict[str, Any]:
        result = await self.run("backup", self.tree, "--state-dir", self.state)
        self.ledger.rows[result["snapshot_id"]] = facts(self.tree)
        return result

    async def back_up_here(self) -> str:
        """The same in this process, which is quicker; for what comes before a kill."""
        journals, options = JournalDirectory(self.state), StoreOptions(s3_endpoint=self.ledger.endpoint)
        async with open_store(self.ledger.store, options) as store:
            snapshot = (await back_up(BackupRequest(self.tree, W), store, journals=journals)).snapshot
        self.ledger.rows[snapshot.id] = facts(self.tree)
        return snapshot.id

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        process.send_signal(signal.SIGKILL)
        await process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was another one that died"
        self.proxy.let_go()


@pytest.fixture
async def node(
    minio: S3Server, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Node]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    store = f"s3://{minio.bucket}/{tmp_path.name}"
    tree = make_tree(tmp_path / "tree", files=8)
    async with S3Proxy(minio.endpoint) as proxy:
        yield Node(proxy, Ledger(store, minio.endpoint), tree, tmp_path / "state")


BACKUP_STEPS: dict[str, tuple[Step, str]] = {
    "walking": ("begin", "before"),
    "begun": ("begin", "after"),
    "mid-part": ("part", "half"),
    "before-complete": ("complete", "before"),
    "after-complete": ("complete", "after"),
    "before-pointer": ("pointer", "before"),
    "after-pointer": ("pointer", "after"),
}


@pytest.mark.parametrize("when", BACKUP_STEPS)
async def test_a_backup_killed_at_any_step_loses_nothing_and_the_next_one_goes_on(
    node: Node, tmp_path: Path, when: str
) -> None:
    await node.back_up_here()
    (node.tree / "large").write_bytes(os.urandom(52 << 20 if when == "mid-part" else 12 << 20))
    step, where = BACKUP_STEPS[when]
    hold = node.proxy.hold(step, where)
    process = await node.start_backup()
    if when == "mid-part":  # the fourth is not begun before one of the others is noted
        await node.proxy.await_done("part", node.proxy.done["part"] + 4)
    await hold.reached.wait()
    await node.kill(process)
    await node.ledger.check(tmp_path)
    result = await node.back_up()
    await node.ledger.check(tmp_path)
    if when in {"after-complete", "before-complete", "before-pointer"}:
        assert result["resumed_bytes"] == result["tar_bytes"]
    if when == "mid-part":
        assert 0 < result["resumed_bytes"] < result["tar_bytes"]
    async with open_store(node.ledger.store, StoreOptions(s3_endpoint=node.ledger.endpoint)) as store:
        swept = await sweep(store, Catalog(store, W), older_than_s=-60, dry_run=True)
        assert swept.objects == []
        prefix = f"/{node.ledger.store.removeprefix('s3://')}/"
        assert node.proxy.begun
        for path in node.proxy.begun:  # MinIO lists the uploads of a key only when it is told the key
            assert [upload async for upload in store.list_uploads(path.removeprefix(prefix))] == []


async def test_a_killed_restore_leaves_nothing_that_is_taken_for_the_tree(node: Node, tmp_path: Path) -> None:
    (node.tree / "large").write_bytes(os.urandom(20 << 20))
    await node.back_up_here()
    hold = node.proxy.hold("read_tar", "before", let_pass=1)
    process = await node.start("restore", tmp_path / "out")
    await hold.reached.wait()
    await node.kill(process)
    assert not (tmp_path / "out").exists()
    half = next(tmp_path.glob(".lapstrake-staging-out-*"))
    refused = await node.start("backup", half, "--state-dir", node.state)
    assert b"its restore did not finish" in (await refused.communicate())[1]
    await node.run("restore", tmp_path / "out")
    assert facts(tmp_path / "out") == facts(node.tree)
    await node.ledger.check(tmp_path)


@pytest.mark.parametrize(("step", "where"), [("pointer", "after"), ("delete", "before"), ("delete", "after")])
async def test_a_killed_deletion_leaves_the_others_whole(
    node: Node, tmp_path: Path, step: Step, where: Any
) -> None:
    doomed = await node.back_up_here()
    (node.tree / "more").write_bytes(b"more")
    await node.back_up_here()
    node.ledger.rows.pop(doomed)
    hold = node.proxy.hold(step, where)
    process = await node.start("snapshots prune", "--keep-last", 1)
    await hold.reached.wait()
    await node.kill(process)
    await node.ledger.check(tmp_path)
    kept = await node.run("snapshots prune", "--keep-last", 1)
    assert kept["kept"] == list(node.ledger.rows)
    await node.ledger.check(tmp_path)
