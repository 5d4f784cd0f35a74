"""Random trees, random work on them between snapshots; every snapshot must be what a model says it was."""

import asyncio
import itertools
import os
import random
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from content.backup import BackupRequest, back_up
from content.journal import JournalDirectory
from content.keys import Workspace
from content.objects.directory import DirectoryObjectStore
from content.restore import RestoreRequest, restore
from content.verify import verify
from tests.support.trees import wait_past_racy_window

W = Workspace("someone", "project")
NAMES = [
    "a",
    "b",
    "A",
    "a.b",
    "a-b",
    "ü",
    "\udcff\udc80",
    "n" * 255,
    "new\nline",
    ".wh.a",
    "-rf",
    " ",
    "%25=x",
]
COPYABLE = {"base": 9 << 20}


@dataclass(eq=False)
class Node:
    """A file, directory or link of the model; hard links are one node under several names."""

    kind: str
    content: bytes = b""
    mode: int = 0o644
    xattrs: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Model:
    """A tree in memory, changed in step with one on the disk."""

    root: Path
    nodes: dict[str, Node] = field(default_factory=dict)

    def seen(self) -> dict[str, tuple[object, ...]]:
        groups: dict[int, str] = {}
        return {
            path: (node.kind, node.content, node.mode, dict(node.xattrs), groups.setdefault(id(node), path))
            for path, node in sorted(self.nodes.items())
        }

    def _directories(self) -> list[str]:
        return ["", *sorted(path + "/" for path, node in self.nodes.items() if node.kind == "d")]

    def _pick(self, rng: random.Random, *kinds: str) -> str | None:
        found = sorted(
            path for path, node in self.nodes.items() if node.kind in kinds and path not in COPYABLE
        )
        return rng.choice(found) if found else None

    def _new(self, rng: random.Random) -> str:
        return rng.choice(self._directories()) + rng.choice(NAMES)

    def _forget(self, path: str) -> None:
        """Whatever is at ``path`` goes, with all below it."""
        if path in self.nodes:
            there = self.root / path
            shutil.rmtree(there) if self.nodes[path].kind == "d" else there.unlink()
        for below in [name for name in self.nodes if name == path or name.startswith(path + "/")]:
            del self.nodes[below]

    def write(self, rng: random.Random) -> None:
        path = self._new(rng)
        self._forget(path)
        content = rng.randbytes(rng.choice([0, 1, 512, 5000, 300_000, 1_500_000]))
        (self.root / path).write_bytes(content)
        (self.root / path).chmod(0o644)
        self.nodes[path] = Node("f", content)

    def sparse(self, rng: random.Random) -> None:
        path, size = self._new(rng), rng.choice([2 << 20, (2 << 20) + 1])
        self._forget(path)
        with (self.root / path).open("wb") as file:
            file.truncate(size)
            file.seek(1 << 20)
            file.write(b"island")
        (self.root / path).chmod(0o644)
        content = bytearray(size)
        content[1 << 20 : (1 << 20) + 6] = b"island"
        self.nodes[path] = Node("f", bytes(content))

    def edit(self, rng: random.Random) -> None:
        """In place, with the old time put back: only ctime tells."""
        if (path := self._pick(rng, "f")) is None or not self.nodes[path].content:
            return
        status = (self.root / path).stat()
        changed = rng.randbytes(1)
        with (self.root / path).open("r+b") as file:
            file.write(changed)
        os.utime(self.root / path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.nodes[path].content = changed + self.nodes[path].content[1:]

    def cut(self, rng: random.Random) -> None:
        if (path := self._pick(rng, "f")) is not None:
            size = len(self.nodes[path].content) // 2
            os.truncate(self.root / path, size)
            self.nodes[path].content = self.nodes[path].content[:size]

    def delete(self, rng: random.Random) -> None:
        if (path := self._pick(rng, "f", "d", "l", "p")) is not None:
            self._forget(path)

    def mkdir(self, rng: random.Random) -> None:
        path = self._new(rng)
        self._forget(path)
        (self.root / path).mkdir()
        (self.root / path).chmod(0o755)
        self.nodes[path] = Node("d", mode=0o755)

    def symlink(self, rng: random.Random) -> None:
        path, target = self._new(rng), rng.choice(["a", "../b", "/etc/passwd", "ü" * 80, "."])
        self._forget(path)
        (self.root / path).symlink_to(target)
        self.nodes[path] = Node("l", os.fsencode(target), 0o777)

    def fifo(self, rng: random.Random) -> None:
        path = self._new(rng)
        self._forget(path)
        os.mkfifo(self.root / path)
        (self.root / path).chmod(0o600)
        self.nodes[path] = Node("p", mode=0o600)

    def hard_link(self, rng: random.Random) -> None:
        source, path = self._pick(rng, "f"), self._new(rng)
        if source is None or source == path or source.startswith(path + "/"):
            return
        self._forget(path)
        os.link(self.root / source, self.root / path)
        self.nodes[path] = self.nodes[source]

    def rename(self, rng: random.Random) -> None:
        source, path = self._pick(rng, "f", "d", "l", "p"), self._new(rng)
        if source is None or f"{path}/".startswith(source + "/") or source.startswith(path + "/"):
            return
        self._forget(path)
        (self.root / source).rename(self.root / path)
        for name in [name for name in self.nodes if name == source or name.startswith(source + "/")]:
            self.nodes[path + name[len(source) :]] = self.nodes.pop(name)

    def chmod(self, rng: random.Random) -> None:
        if (path := self._pick(rng, "f", "d", "p")) is not None:
            self.nodes[path].mode = rng.choice([0o400, 0o555, 0o600, 0o4755, 0o1777, 0])
            (self.root / path).chmod(self.nodes[path].mode)

    def xattr(self, rng: random.Random) -> None:
        if (path := self._pick(rng, "f", "d")) is not None:
            value = rng.randbytes(rng.choice([0, 3, 200]))
            os.setxattr(self.root / path, "user.a=%b", value)
            self.nodes[path].xattrs["user.a=%b"] = value


WORK = [
    Model.write, Model.sparse, Model.edit, Model.cut, Model.delete, Model.mkdir, Model.symlink, Model.fifo,
    Model.hard_link, Model.rename, Model.chmod, Model.xattr,
]  # fmt: skip
_KINDS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p"}


def observed(root: Path) -> dict[str, tuple[object, ...]]:
    """What `Model.seen` would say of the tree on the disk."""
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[int, str] = {}
    for path in sorted(root.rglob("*"), key=lambda path: os.path.relpath(path, root)):
        name, status = os.path.relpath(path, root), path.lstat()
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        content, xattrs = b"", {}
        if kind == "f":
            content = path.read_bytes()
        if kind == "l":
            content = os.fsencode(path.readlink())
        if kind in "fd":
            xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
        group = groups.setdefault(status.st_ino, name)
        found[name] = (kind, content, stat.S_IMODE(status.st_mode), xattrs, group)
    return found


async def _check(rng: random.Random, generations: list[list[int]], top: Path) -> None:
    model = Model(top / "tree")
    model.root.mkdir()
    for name, size in COPYABLE.items():
        (model.root / name).write_bytes(rng.randbytes(size))
        (model.root / name).chmod(0o644)
        model.nodes[name] = Node("f", (model.root / name).read_bytes())
    store, journals = DirectoryObjectStore(top / "store"), JournalDirectory(top / "state")
    wanted = {}
    for generation in generations:
        for choice in generation:
            WORK[choice](model, rng)
        if rng.random() < 0.5:  # the other half is in the racy window of the walk
            wait_past_racy_window(model.root)
        result = await back_up(BackupRequest(model.root, W), store, journals=journals)
        assert result.left_out == []
        assert not (await verify(store, result.snapshot)).problems
        wanted[result.snapshot.id] = (model.seen(), result.snapshot.tar_key)
    for number, (snapshot_id, (seen, tar_key)) in enumerate(wanted.items()):
        out, untarred = top / f"out-{number}", top / f"tar-{number}"
        await restore(RestoreRequest(out, W, snapshot_id, sync=False), store)
        assert observed(out) == seen
        untarred.mkdir()
        tar = [
            "tar",
            "--xattrs",
            "--xattrs-include=*",
            "-xpf",
            store.root / "objects" / tar_key,
            "-C",
            untarred,
        ]
        await asyncio.to_thread(subprocess.run, tar, check=True, capture_output=True)
        assert observed(untarred) == seen


@pytest.mark.skipif(os.geteuid() != 0, reason="files without any permission are read back")
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes a second: no shrinking
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1 << 32),
    generations=st.lists(st.lists(st.integers(0, len(WORK) - 1), max_size=14), min_size=2, max_size=4),
)
def test_every_generation_restores_as_the_model_has_it(
    tmp_path: Path, seed: int, generations: list[list[int]]
) -> None:
    top = Path(tempfile.mkdtemp(dir=tmp_path))
    try:
        asyncio.run(_check(random.Random(seed), generations, top))
    finally:
        shutil.rmtree(top)


def test_each_kind_of_work_after_each_other(tmp_path: Path) -> None:
    """What hypothesis may not come upon: all pairs, in a few generations."""
    pairs = [number for pair in itertools.product(range(len(WORK)), repeat=2) for number in pair]
    generations = [pairs[start : start + 60] for start in range(0, len(pairs), 60)]
    asyncio.run(_check(random.Random(3), generations, tmp_path))
