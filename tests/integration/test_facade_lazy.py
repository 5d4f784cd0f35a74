"""Lazy formats of the facade's own layers, before the programs that read them."""

import asyncio
import contextlib
import json
import random
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from registry_facade.hosts import Mirror, write
from tests.integration.test_facade_clients import busybox_layer, opened
from tests.support.components import program
from tests.support.containerd import NAMESPACE, Containerd
from tests.support.facade import FacadeProcess, facade_process
from tests.support.images import push_image
from tests.support.podman import podman
from tests.support.zstd_chunked import chunks_of, positions, toc_of, unpacked

Layer = Mapping[str, Any]


def estargz_toc_digest(_blob: bytes, layer: Layer) -> str:
    digest: str = layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]
    return digest


def zstd_chunked_toc_digest(blob: bytes, layer: Layer) -> str:
    """Of the TOC as it is unpacked; the annotation has that of the packed one."""
    assert toc_of(blob, layer["annotations"])
    offset, length, *_ = positions(layer["annotations"], "manifest")
    return Digest.of(unpacked(blob[offset : offset + length]))


@pytest.mark.component("containerd", "ctr-remote", "runc", "busybox")
@pytest.mark.parametrize(
    ("lazy", "toc_digest", "options"),
    [
        pytest.param("estargz", estargz_toc_digest, [], id="estargz"),
        pytest.param("zstd:chunked", zstd_chunked_toc_digest, ["--zstdchunked"], id="zstd:chunked"),
    ],
)
async def test_layer_runs_anywhere_and_its_toc_is_what_the_snapshotter_reads(
    lazy: str,
    toc_digest: Callable[[bytes, Layer], str],
    options: list[str],
    containerd: Containerd,
    tmp_path: Path,
) -> None:
    await push_base(tmp_path)
    put_spec(tmp_path, "ws", [{"files": {"/etc/greeting": "lazy\n", "/etc/empty": ""}}])

    def pull_and_read() -> None:
        with lazy_facade(tmp_path, lazy) as facade:
            made = last_layer(facade, "ws")
            write("containerd", Mirror("facade.test", facade.url), containerd.certs_d)
            containerd.pull("facade.test/workspaces/ws:latest")
            ran = containerd.run("facade.test/workspaces/ws:latest", "lazy", "/bin/cat", "/etc/greeting")
            assert ran == "lazy\n"
            wanted = toc_digest(blob_of(tmp_path, made), made)
            assert toc_digest_read(containerd, made["digest"], *options) == wanted

    await asyncio.to_thread(pull_and_read)


@pytest.mark.component("podman", "runc", "busybox")
async def test_podman_fetches_the_chunks_that_it_lacks_and_the_toc(tmp_path: Path) -> None:
    """Of a second image whose large file has bytes put in, and one of whose forty small ones is another."""
    rng = random.Random(1)
    large = rng.randbytes(3 << 20)
    small = {f"lib/{number}": rng.randbytes(3000) for number in range(40)}
    trees = {
        "one": {"large": large, **small},
        "two": {"large": large[:1_000_000] + b"put in" + large[1_000_000:], **small, "lib/7": b"another"},
    }
    await push_base(tmp_path)
    for name, files in trees.items():
        put_spec(tmp_path, name, [{"file": f"tree-{name}", "at": "/opt/tool"}])
        for path, data in files.items():
            place = tmp_path / "specs" / f"tree-{name}" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    def pull_both() -> None:
        with lazy_facade(tmp_path, "zstd:chunked") as facade, podman(tmp_path / "home") as client:
            one, two = last_layer(facade, "one"), last_layer(facade, "two")
            for name, layer in (("one", one), ("two", two)):
                log = client.pull(f"{facade.address}/workspaces/{name}:latest")
                assert f"Retrieved partial blob {layer['digest']}" in log
            image = f"{facade.address}/workspaces/two:latest"
            for path in ("large", "lib/7", "lib/8"):
                got = client.run(image, "/bin/cat", f"/opt/tool/{path}", user="1000")
                assert got == trees["two"][path]
        first, second = (toc_of(blob_of(tmp_path, made), made["annotations"]) for made in (one, two))
        toc_bytes = positions(two["annotations"], "manifest")[1]
        assert sent_bytes(facade, two["digest"]) == toc_bytes + missing_bytes(second, first)
        assert 10 * sent_bytes(facade, two["digest"]) < two["size"]
        assert sent_bytes(facade, one["digest"]) > len(large)

    await asyncio.to_thread(pull_both)


def missing_bytes(toc: Layer, held: Layer) -> int:
    """What a reader that holds all files of ``held`` has to fetch of the layer with ``toc``."""
    digests = {entry[key] for entry in held["entries"] for key in ("digest", "chunkDigest") if key in entry}
    is_held, missing = False, 0
    for entry, end in chunks_of(toc):
        if entry["type"] != "chunk":
            is_held = entry.get("digest") in digests
        if "offset" in entry and not is_held and entry.get("chunkDigest") not in digests:
            missing += end - entry["offset"]
    return missing


def sent_bytes(facade: FacadeProcess, digest: str) -> int:
    """What a facade has sent of a blob until it ended, by its log."""
    lines = [json.loads(line) for line in facade.process.log_text().splitlines() if digest in line]
    return sum(line.get("sent_bytes", 0) for line in lines)


async def push_base(root: Path) -> None:
    await push_image(LayoutRepository(root / "layout", create=True), "v1", [busybox_layer()])


def put_spec(root: Path, name: str, layers: list[dict[str, Any]]) -> None:
    (root / "specs").mkdir(exist_ok=True)
    spec = {"base": "images/app:v1", "layers": layers}
    (root / "specs" / f"{name}.json").write_text(json.dumps(spec))


def lazy_facade(root: Path, lazy: str) -> contextlib.AbstractContextManager[FacadeProcess]:
    return facade_process(
        root,
        *("--upstream", f"images=oci:{root}/layout", "--image-specs", root / "specs"),
        env={"LAPSTRAKE_FACADE_LAZY_LAYERS": lazy},
    )


def last_layer(facade: FacadeProcess, name: str) -> Layer:
    manifest = json.loads(opened(f"{facade.url}/v2/workspaces/{name}/manifests/latest").read())
    layer: Layer = manifest["layers"][-1]
    return layer


def blob_of(root: Path, layer: Layer) -> bytes:
    """As it lies in the facade's cache."""
    (path,) = (root / "cache").rglob(Digest(layer["digest"]).encoded)
    return path.read_bytes()


def toc_digest_read(containerd: Containerd, layer: str, *options: str) -> str:
    """As the stargz snapshotter's own tool computes it from the blob."""
    argv = [program("ctr-remote"), "--address", str(containerd.socket), "--namespace", NAMESPACE]
    done = subprocess.run(
        [*argv, "images", "get-toc-digest", *options, layer],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
