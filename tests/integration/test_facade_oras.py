"""oras, a registry client that is not ours and shares nothing with it, reads what the facade serves."""

import asyncio
from pathlib import Path

import oras.client
import pytest

from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from tests.support.facade import running_facade
from tests.support.images import made_layer, push_image

LAYERS = [made_layer({"bin/tool": b"#!/bin/sh\n"}), made_layer({"etc/motd": b"hello\n" * 1000})]


@pytest.fixture
async def upstream(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    await push_image(LayoutRepository(directory, create=True), "v1", LAYERS)
    return directory


def _pull(address: str, outdir: Path) -> dict[str, bytes]:
    """Blocking: runs in a thread beside the facade's loop."""
    client = oras.client.OrasClient(hostname=address, insecure=True)
    reference = f"{address}/lib/tool:v1"
    manifest = client.get_manifest(reference)
    blobs = {}
    for layer in manifest["layers"]:
        target = outdir / layer["digest"].partition(":")[2]
        client.download_blob(client.get_container(reference), layer["digest"], str(target))
        blobs[layer["digest"]] = target.read_bytes()
    return blobs


async def test_oras_reads_manifest_tags_and_blobs(tmp_path: Path, upstream: Path) -> None:
    async with running_facade(tmp_path / "cache", upstreams={"lib": f"oci:{upstream}"}) as facade:
        blobs = await asyncio.to_thread(_pull, facade.address, tmp_path)
        client = oras.client.OrasClient(hostname=facade.address, insecure=True)
        tags = await asyncio.to_thread(client.get_tags, f"{facade.address}/lib/tool")
    assert tags == ["v1"]
    assert blobs == {made.layer.descriptor.digest: made.blob for made in LAYERS}
    assert all(Digest.of(data) == digest for digest, data in blobs.items())
