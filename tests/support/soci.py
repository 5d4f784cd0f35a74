"""The SOCI snapshotter of awslabs, and its command: what our zTOCs and indexes are for."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import Process

CONTAINERD_SOCKET = "containerd.sock"


def require_soci(*programs: str) -> None:
    """Skips where they could not be built; they are welcome, not needed."""
    gone = [name for name in programs if shutil.which(name) is None]
    if gone:
        pytest.skip(f"{', '.join(gone)} is not on the PATH; it is built with Go, gcc and zlib's archive")


@dataclass(frozen=True)
class Converted:
    """What ``soci convert`` adds to an image: its index, and the zTOCs of its layers in their order."""

    index: bytes
    ztocs: tuple[bytes, ...]


def soci_convert(layout: Path, out: Path, span_bytes: int) -> Converted:
    """Converts the one image of an OCI layout, layers of every size."""
    sizes = ("--span-size", str(span_bytes), "--min-layer-size", "0")
    argv = ["soci", "convert", "--standalone", "--format", "oci-dir", *sizes, str(layout), str(out)]
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=90, env={**os.environ, "TZ": "UTC"}
    )
    assert done.returncode == 0, done.stderr

    def blob(digest: str) -> bytes:
        return (out / "blobs" / Path(*digest.split(":"))).read_bytes()

    top = json.loads(blob(json.loads((out / "index.json").read_text())["manifests"][0]["digest"]))
    (index,) = (blob(item["digest"]) for item in top["manifests"] if "artifactType" in item)
    return Converted(index, tuple(blob(layer["digest"]) for layer in json.loads(index)["layers"]))


@contextlib.contextmanager
def soci_snapshotter() -> Iterator[Path]:
    """A snapshotter of this test's own that fetches what is read and no more; its socket.

    It asks the containerd whose socket is, or is linked to, CONTAINERD_SOCKET beside its own.
    """
    require_soci("soci-snapshotter-grpc")
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("mounting with FUSE needs root and /dev/fuse")
    root = Path(tempfile.mkdtemp(prefix="lapstrake-soci-"))
    settings, socket = root / "config.toml", root / "s.sock"
    settings.write_text(f"""no_prometheus = true
[background_fetch]
disable = true
[content_store]
containerd_address = {json.dumps(str(root / CONTAINERD_SOCKET))}
""")
    (root / "root").mkdir()
    argv: list[str | Path] = ["soci-snapshotter-grpc", "--config", settings, "--address", socket]
    argv += ["--root", root / "root", "--log-level", "debug"]
    try:
        with Process("soci", argv, log=root / "soci.log", ready=lambda _: socket.exists()):
            yield socket
    finally:
        for point in fuse_mounts(root):
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(root, ignore_errors=True)


def fuse_mounts(root: Path) -> list[str]:
    """The mounts of lazily pulled layers below a snapshotter's directory."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [point for _, point, kind, *_ in lines if point.startswith(f"{root}/") and kind.startswith("fuse")]
