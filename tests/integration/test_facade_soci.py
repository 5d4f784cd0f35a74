"""Our zTOCs and indexes before the programs they are made for: SOCI's command, and its snapshotter."""

import asyncio
import gzip
import hashlib
import io
import json
import random
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from registry_facade.soci.build import build_ztoc
from registry_facade.soci.index import BUILD_TOOL, SPAN_BYTES, LayerZtoc, soci_index
from tests.integration.test_facade_clients import opened
from tests.support.containerd import containerd
from tests.support.facade import facade_process, metric_value
from tests.support.images import AMD64, BUSYBOX, MadeLayer, made_layer, push_image, push_index
from tests.support.soci import CONTAINERD_SOCKET, fuse_mounts, require_soci, soci_convert, soci_snapshotter
from tests.unit.registry_facade.test_soci_ztoc import PACKINGS, content, in_members, tar_of

THEIRS = "AWS SOCI CLI v0.2"
ONE_MEMBER = sorted(name for name in PACKINGS if "members" not in name)
MIB = 1 << 20
NOISE = random.Random(7).randbytes(16 * MIB)


def as_layer(blob: bytes) -> MadeLayer:
    descriptor = Descriptor(media_types.OCI_LAYER_GZIP, Digest.of(blob), len(blob))
    return MadeLayer(blob, Layer(descriptor, Digest.of(gzip.decompress(blob))))


def tar_of_everything(tar_format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(data))

        add("etc", type=tarfile.DIRTYPE, mode=0o1755, mtime=1_700_000_000)
        add("etc/" + "long/" * 30 + "name", content(1, 300_000), mode=0o4755, uid=2_000_000, uname="me")
        add("etc/link", type=tarfile.SYMTYPE, linkname="../" + "y" * 90)
        add("etc/hard", type=tarfile.LNKTYPE, linkname="etc/link")
        add("etc/tty", type=tarfile.CHRTYPE, devmajor=5, devminor=1)
        add("etc/disk", type=tarfile.BLKTYPE, devmajor=8)
        add("etc/pipe", type=tarfile.FIFOTYPE)
        add("etc/.wh.gone")
        if tar_format == tarfile.PAX_FORMAT:
            add("etc/ä", b"c", pax_headers={"SCHILY.xattr.user.x": "ü\n=", "mtime": "1700000000.25"})
            add("etc/early", pax_headers={"mtime": "-1.5", "comment": "kept"})
        add("etc/noise", content(2, 500_000))
    return out.getvalue()


LAYERS = {
    **{f"gzip of {name}": PACKINGS[name](tar_of_everything(tarfile.PAX_FORMAT)) for name in ONE_MEMBER},
    "GNU tar": gzip.compress(tar_of_everything(tarfile.GNU_FORMAT), 6, mtime=0),
    "no end of the tar": gzip.compress(tar_of([("a", content(3, 102_400))])[: 512 + 102_400], 6, mtime=0),
    "half an end": gzip.compress(tar_of([("a", content(3, 102_400))])[: 1024 + 102_400], 6, mtime=0),
    "an empty tar": gzip.compress(tar_of([]), 6, mtime=0),
}


@pytest.mark.parametrize("span_bytes", [64 << 10, SPAN_BYTES])
@pytest.mark.parametrize("what", LAYERS)
async def test_ztoc_and_index_are_those_of_the_soci_command_byte_for_byte(
    tmp_path: Path, what: str, span_bytes: int
) -> None:
    require_soci("soci")
    made = as_layer(LAYERS[what])
    await push_image(LayoutRepository(tmp_path / "layout", create=True), "v1", [made])
    theirs = await asyncio.to_thread(soci_convert, tmp_path / "layout", tmp_path / "out", span_bytes)
    (tmp_path / "layer").write_bytes(made.blob)
    ours = bytes(build_ztoc(tmp_path / "layer", span_bytes, THEIRS))
    assert theirs.ztocs == (ours,)
    if span_bytes == SPAN_BYTES:
        index = soci_index([LayerZtoc(made.layer.descriptor, Digest.of(ours), len(ours))])
        assert index.data.replace(BUILD_TOOL.encode(), THEIRS.encode()) == theirs.index


@pytest.mark.component("containerd", "runc", "busybox")
@pytest.mark.parametrize("base", ["manifest", "index"])
async def test_snapshotter_runs_a_composed_image_and_fetches_only_what_is_read(
    tmp_path: Path, base: str
) -> None:
    """One layer is a gzip like any other, one of many members, as parallel compressors write them."""
    plain = made_layer({"bin/busybox": BUSYBOX.read_bytes(), "data/noise": NOISE, "data/small": b"small\n"})
    parallel = as_layer(in_members(MIB)(tar_of([("opt/noise", NOISE[::-1]), ("opt/small", b"other\n")])))
    layout = LayoutRepository(tmp_path / "layout", create=True)
    image = await push_image(layout, "v1", [plain, parallel])
    if base == "index":
        await push_index(layout, "v1", [(AMD64, image)])
    (tmp_path / "specs").mkdir()
    spec = {"base": "images/app:v1", "layers": [{"files": {"/etc/greeting": "hello\n"}}]}
    (tmp_path / "specs" / "ws.json").write_text(json.dumps(spec))
    await asyncio.to_thread(_pull_and_read, tmp_path, len(plain.blob) + len(parallel.blob))


def _pull_and_read(tmp_path: Path, layers_bytes: int) -> None:
    settings = ("--upstream", f"images=oci:{tmp_path}/layout", "--image-specs", tmp_path / "specs")
    with (
        soci_snapshotter() as socket,
        containerd(("soci", socket)) as daemon,
        facade_process(tmp_path, *settings, env={"LAPSTRAKE_FACADE_SOCI": "true"}) as facade,
    ):
        socket.with_name(CONTAINERD_SOCKET).symlink_to(daemon.socket)
        _await_index(f"{facade.url}/v2/workspaces/ws")
        before = _served_bytes(facade.url)
        reference = f"{facade.address}/workspaces/ws:latest"
        daemon.pull_as_kubelet(reference)
        assert len(fuse_mounts(socket.parent)) == 2

        def run(name: str, *command: str) -> str:
            return daemon.run(reference, name, "/bin/busybox", *command)

        small = ("/data/small", "/opt/small", "/etc/greeting")
        assert run("small", "cat", *small) == "small\nother\nhello\n"
        assert _served_bytes(facade.url) - before < layers_bytes / 2
        sums = [line.split()[0] for line in run("all", "sha256sum", "/data/noise", "/opt/noise").splitlines()]
        assert sums == [hashlib.sha256(data).hexdigest() for data in (NOISE, NOISE[::-1])]


def _await_index(image: str) -> None:
    """Pulls it like a client that knows nothing of SOCI, then waits for the manifest that names an index."""
    manifest = _manifest(image)
    for layer in manifest["layers"]:
        opened(f"{image}/blobs/{layer['digest']}").read()
    deadline_s = time.monotonic() + 60
    while "com.amazon.soci.index-digest" not in _manifest(image)["annotations"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def _manifest(image: str) -> Any:
    found = json.loads(opened(f"{image}/manifests/latest").read())
    if "manifests" not in found:
        return found
    return json.loads(opened(f"{image}/manifests/{found['manifests'][0]['digest']}").read())


def _served_bytes(url: str) -> float:
    with opened(f"{url}/metrics") as answer:
        return metric_value(answer.read().decode(), "facade_served_bytes_total")
