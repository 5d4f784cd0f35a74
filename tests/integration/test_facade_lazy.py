"""Lazy formats of the facade's own layers, before the programs that read them."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from ocikit.layout import LayoutRepository
from registry_facade.hosts import Mirror, write
from tests.integration.test_facade_clients import busybox_layer, opened
from tests.support.components import program
from tests.support.containerd import NAMESPACE, Containerd
from tests.support.facade import facade_process
from tests.support.images import push_image

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"


@pytest.mark.component("containerd", "ctr-remote", "runc", "busybox")
async def test_estargz_layer_runs_anywhere_and_its_toc_is_what_the_snapshotter_reads(
    containerd: Containerd, tmp_path: Path
) -> None:
    await push_image(LayoutRepository(tmp_path / "layout", create=True), "v1", [busybox_layer()])
    (tmp_path / "specs").mkdir()
    spec = {"base": "images/app:v1", "layers": [{"files": {"/etc/greeting": "lazy\n", "/etc/empty": ""}}]}
    (tmp_path / "specs" / "ws.json").write_text(json.dumps(spec))

    def pull_and_read() -> None:
        with facade_process(
            tmp_path,
            *("--upstream", f"images=oci:{tmp_path}/layout", "--image-specs", tmp_path / "specs"),
            env={"LAPSTRAKE_FACADE_LAZY_LAYERS": "estargz"},
        ) as facade:
            manifest = json.loads(opened(f"{facade.url}/v2/workspaces/ws/manifests/latest").read())
            made = manifest["layers"][-1]
            write("containerd", Mirror("facade.test", facade.url), containerd.certs_d)
            containerd.pull("facade.test/workspaces/ws:latest")
            ran = containerd.run("facade.test/workspaces/ws:latest", "lazy", "/bin/cat", "/etc/greeting")
            assert ran == "lazy\n"
            assert toc_digest(containerd, made["digest"]) == made["annotations"][TOC_DIGEST]

    await asyncio.to_thread(pull_and_read)


def toc_digest(containerd: Containerd, layer: str) -> str:
    """As the stargz snapshotter's own tool computes it from the blob."""
    argv = [program("ctr-remote"), "--address", str(containerd.socket), "--namespace", NAMESPACE]
    done = subprocess.run(
        [*argv, "images", "get-toc-digest", layer], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
