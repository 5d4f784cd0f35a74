"""Layers that are no images: tars by URL, and snapshots that the content service committed."""

import asyncio
import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from ocikit import media_types
from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from ocikit.manifest import Manifest
from registry_facade.errors import LayerUnavailable
from registry_facade.layers.snapshots import parse_pointer
from tests.support.facade import RunningFacade, running_facade
from tests.support.images import made_layer, push_image

BASE = made_layer({"bin/sh": b"a shell"})


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


PLAIN = tar_of({"opt/tool": os.urandom(300_000)})
PACKED = {
    "": (PLAIN, media_types.OCI_LAYER),
    "gzip": (gzip.compress(PLAIN, mtime=0), media_types.OCI_LAYER_GZIP),
    "zstd": (zstandard.compress(PLAIN), media_types.OCI_LAYER_ZSTD),
}


@dataclass
class FileServer:
    """Files by path, with ranges, redirects and a count of what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    token: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "")
        self.asked.append((request.method, request.path, shown))
        if request.path in self.redirects:
            return web.Response(status=307, headers={"Location": self.redirects[request.path]})
        if self.token and shown != f"Bearer {self.token}":
            return web.Response(status=403)
        if request.path not in self.files:
            return web.Response(status=404)
        data = self.files[request.path]
        wanted = request.http_range
        part = data[wanted.start or 0 : wanted.stop]
        if "Range" not in request.headers:
            return web.Response(body=data)
        start = wanted.start or 0
        span = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return web.Response(status=206, body=part, headers={"Content-Range": span})


@contextlib.asynccontextmanager
async def file_server() -> AsyncIterator[FileServer]:
    server = FileServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[FileServer]:
    async with file_server() as found:
        yield found


@dataclass(frozen=True)
class Workshop:
    specs: Path
    settings: dict[str, Any]

    def write(self, **spec: Any) -> None:
        (self.specs / "ws.json").write_text(json.dumps({"base": "images/x:base", **spec}))


@pytest.fixture
async def workshop(tmp_path: Path, server: FileServer) -> Workshop:
    layout = LayoutRepository(tmp_path / "layout", create=True)
    await push_image(layout, "base", [BASE])
    specs = tmp_path / "specs"
    specs.mkdir()
    settings = {
        "upstreams": {"images": f"oci:{tmp_path}/layout"},
        "image_specs": specs,
        "private_hosts": (server.url.removeprefix("http://"),),
    }
    return Workshop(specs, settings)


async def manifest_of(facade: RunningFacade) -> Manifest:
    status, _, body = await facade.get("/v2/workspaces/ws/manifests/latest")
    assert status == 200, body
    return Manifest.parse(body)


async def blob_of(facade: RunningFacade, digest: Digest, **headers: str) -> bytes:
    status, _, body = await facade.get(f"/v2/workspaces/ws/blobs/{digest}", **headers)
    assert status in {200, 206}, body
    return body


async def refusal(facade: RunningFacade) -> tuple[int, str]:
    status, _, body = await facade.get("/v2/workspaces/ws/manifests/latest")
    return status, json.loads(body)["errors"][0]["message"]


# ----- tars by URL -----


@pytest.mark.parametrize("compression", PACKED)
async def test_tar_by_url_is_a_layer_whose_rest_is_learnt(
    compression: str, workshop: Workshop, server: FileServer, tmp_path: Path
) -> None:
    blob, media_type = PACKED[compression]
    server.files["/tool.tar"] = blob
    workshop.write(layers=[{"tar": f"{server.url}/tool.tar", "digest": Digest.of(blob)}])
    async with running_facade(tmp_path / "cache", **workshop.settings) as facade:
        manifest = await manifest_of(facade)
        layer = manifest.layers[-1]
        assert (layer.digest, layer.size, layer.media_type) == (Digest.of(blob), len(blob), media_type)
        config = json.loads(await blob_of(facade, manifest.config.digest))
        assert config["rootfs"]["diff_ids"][-1] == Digest.of(PLAIN)
        assert await blob_of(facade, layer.digest) == blob
        assert await facade.metric("facade_received_bytes_total", source="url") == len(blob)
    async with running_facade(tmp_path / "cache", **workshop.settings) as facade:
        assert (await manifest_of(facade)).config == manifest.config
    assert len([path for method, path, _ in server.asked if method == "GET"]) == 1


async def test_tar_that_is_described_in_full_is_not_touched_before_it_is_asked_for(
    workshop: Workshop, server: FileServer, tmp_path: Path
) -> None:
    blob, media_type = PACKED["gzip"]
    server.files["/tool.tar"] = blob
    server.redirects["/moved.tar"] = f"{server.url}/tool.tar"
    described = {"digest": Digest.of(blob), "diff_id": Digest.of(PLAIN), "size": len(blob)}
    workshop.write(layers=[{"tar": f"{server.url}/moved.tar", "media_type": media_type, **described}])
    async with running_facade(tmp_path / "cache", **workshop.settings) as facade:
        manifest = await manifest_of(facade)
        assert server.asked == []
        assert await blob_of(facade, manifest.layers[-1].digest, Range="bytes=1000-1999") == blob[1000:2000]
        assert await blob_of(facade, manifest.layers[-1].digest) == blob


BROKEN = {
    "other bytes": ({"digest": Digest.of(b"other")}, 422, "corrupt"),
    "absent": ({"tar": "/absent.tar"}, 422, "not found"),
    "other diff_id": ({"diff_id": Digest.of(b"other")}, 422, "its diff_id is"),
    "no digest": ({"digest": None}, 422, "must be a digest"),
    "local file": ({"tar": "file:///etc/passwd"}, 422, "http or https"),
    "metadata service": ({"tar": "http://169.254.169.254/x"}, 422, "private address"),
    "unknown type": ({"media_type": "text/plain"}, 422, "media_type"),
}


@pytest.mark.parametrize(("change", "status", "message"), BROKEN.values(), ids=BROKEN)
async def test_tar_that_is_not_what_was_said_is_a_clear_answer(
    change: dict[str, Any],
    status: int,
    message: str,
    workshop: Workshop,
    server: FileServer,
    tmp_path: Path,
) -> None:
    blob, _ = PACKED["gzip"]
    server.files["/tool.tar"] = blob
    layer = {"tar": f"{server.url}/tool.tar", "digest": Digest.of(blob), **change}
    if layer["tar"].startswith("/"):
        layer["tar"] = server.url + layer["tar"]
    workshop.write(layers=[layer])
    async with running_facade(tmp_path / "cache", **workshop.settings) as facade:
        found, text = await refusal(facade)
        assert found == status
        assert message in text


async def test_truncated_gzip_is_no_layer(workshop: Workshop, server: FileServer, tmp_path: Path) -> None:
    blob = PACKED["gzip"][0][:-1000]
    server.files["/tool.tar"] = blob
    workshop.write(layers=[{"tar": f"{server.url}/tool.tar", "digest": Digest.of(blob)}])
    async with running_facade(tmp_path / "cache", **workshop.settings) as facade:
        assert (await refusal(facade))[0] == 422


# ----- snapshots of workspaces -----


def lapstrake(*words: object) -> None:
    argv = [sys.executable, "-c", "from cli.main import main; main()", *map(str, words)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def back_up(tree: Path, store: Path, state: Path) -> None:
    fixed = ("--workspace", "me/project", "--store", f"file://{store}", "--state-dir", state)
    lapstrake("backup", tree, *fixed)


def make_tree(root: Path) -> None:
    (root / "src").mkdir(parents=True)
    (root / "src/main.py").write_text("print('hello')\n")
    (root / "src/tool").write_bytes(os.urandom(100_000))
    (root / "src/tool").chmod(0o755)
    (root / "link").symlink_to("src/main.py")
    os.link(root / "src/main.py", root / "hard")
    (root / "gone").write_text("soon")
    (root / os.fsdecode(b"not-utf8-\xff")).write_text("bytes")
    (root / ("long-" + "n" * 150)).write_text("long")
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"middle")
    os.utime(root / "src/tool", ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))


def unpacked(layers: list[bytes], target: Path) -> None:
    target.mkdir()
    for layer in layers:
        argv = ["tar", "--extract", "--preserve-permissions", "--directory", str(target)]
        subprocess.run(argv, input=layer, check=True, capture_output=True, timeout=60)


def listed(root: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        mtime_ns = None if path.is_symlink() else stat.st_mtime_ns
        found[str(path.relative_to(root))] = (stat.st_mode, stat.st_uid, stat.st_nlink, mtime_ns, content)
    return found


@pytest.mark.parametrize("place", ["/home/me/project", "/"])
async def test_snapshot_is_a_layer_with_the_tree_as_it_was(
    place: str, workshop: Workshop, tmp_path: Path
) -> None:
    """After a second backup, whose tar has dead members in front of the new ones."""
    tree, store = tmp_path / "tree", tmp_path / "store"
    await asyncio.to_thread(make_tree, tree)
    await asyncio.to_thread(back_up, tree, store, tmp_path / "state")
    (tree / "src/main.py").write_text("print('changed')\n")
    (tree / "gone").unlink()
    await asyncio.to_thread(back_up, tree, store, tmp_path / "state")
    workshop.write(layers=[{"snapshot": "me/project", "at": place}])
    settings = {**workshop.settings, "snapshot_store": f"file://{store}/objects"}
    digests = set()
    for cache in ("one", "two"):
        async with running_facade(tmp_path / cache, **settings) as facade:
            layer = (await manifest_of(facade)).layers[-1]
            digests.add(layer.digest)
            blob = await blob_of(facade, layer.digest)
    assert len(digests) == 1  # the same on every node
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    await asyncio.to_thread(unpacked, [blob], tmp_path / "rootfs")
    root = tmp_path / "rootfs" / place.strip("/")
    assert await asyncio.to_thread(listed, root) == await asyncio.to_thread(listed, tree)


async def test_older_snapshot_by_its_id_over_http_with_a_token(
    workshop: Workshop, server: FileServer, tmp_path: Path
) -> None:
    tree, store = tmp_path / "tree", tmp_path / "store"
    tree.mkdir()
    for text in ("first", "second"):
        (tree / "file").write_text(text)
        await asyncio.to_thread(back_up, tree, store, tmp_path / "state")
    objects = store / "objects"
    server.token = "of the store"
    for path in objects.rglob("*"):
        if path.is_file():
            server.files[f"/{path.relative_to(objects)}"] = path.read_bytes()
    pointer = json.loads(server.files["/me/project/snapshots.json"])
    oldest = pointer["snapshots"][0]["id"]
    workshop.write(layers=[{"snapshot": "me/project", "id": oldest, "at": "/ws"}])
    from servicekit.secrets import Secret

    access = {"snapshot_store": server.url, "snapshot_token": Secret("of the store")}
    async with running_facade(tmp_path / "cache", **workshop.settings, **access) as facade:
        blob = await blob_of(facade, (await manifest_of(facade)).layers[-1].digest)
        with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
            assert tar.extractfile("ws/file").read() == b"first"  # type: ignore[union-attr] # it is a file


async def test_lost_layer_of_a_snapshot_is_made_again(workshop: Workshop, tmp_path: Path) -> None:
    tree, store = tmp_path / "tree", tmp_path / "store"
    tree.mkdir()
    (tree / "file").write_text("kept")
    await asyncio.to_thread(back_up, tree, store, tmp_path / "state")
    workshop.write(layers=[{"snapshot": "me/project"}])
    settings = {**workshop.settings, "snapshot_store": f"file://{store}/objects"}
    async with running_facade(tmp_path / "cache", **settings) as facade:
        digest = (await manifest_of(facade)).layers[-1].digest
        blob = await blob_of(facade, digest)
    (tmp_path / "cache/blobs/sha256" / digest.encoded).unlink()
    async with running_facade(tmp_path / "cache", **settings) as facade:
        assert await blob_of(facade, digest) == blob


async def test_damaged_snapshot_is_no_layer(workshop: Workshop, tmp_path: Path) -> None:
    tree, store = tmp_path / "tree", tmp_path / "store"
    tree.mkdir()
    (tree / "file").write_text("x" * 10_000)
    await asyncio.to_thread(back_up, tree, store, tmp_path / "state")
    (tar,) = store.rglob("*.tar")
    whole = tar.read_bytes()
    workshop.write(layers=[{"snapshot": "me/project"}])
    settings = {**workshop.settings, "snapshot_store": f"file://{store}/objects"}
    tar.chmod(0o644)
    async with running_facade(tmp_path / "cache", **settings) as facade:
        for damaged in (whole[:-1], whole + b"\0", whole[:700] + b"\1" + whole[701:]):
            tar.write_bytes(damaged)
            status, text = await refusal(facade)
            assert status == 422
            assert "not those that were committed" in text
        tar.write_bytes(whole)
        assert (await manifest_of(facade)).layers


POINTERS = {"no store": {}, "no such workspace": {"snapshot_store": "file:///nowhere"}}


@pytest.mark.parametrize("settings", POINTERS.values(), ids=POINTERS)
async def test_snapshot_that_is_not_there_is_a_clear_answer(
    settings: dict[str, Any], workshop: Workshop, tmp_path: Path
) -> None:
    workshop.write(layers=[{"snapshot": "me/project"}])
    async with running_facade(tmp_path / "cache", **{**workshop.settings, **settings}) as facade:
        status, text = await refusal(facade)
        assert status == 422
        assert text.startswith("snapshot of me/project: ")


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(documents | st.fixed_dictionaries({"sha256": st.text(), "snapshots": documents}))
def test_any_other_document_is_no_pointer(document: Any) -> None:
    with pytest.raises(LayerUnavailable):
        parse_pointer(json.dumps(document).encode(), "x")
