"""A combination of chunks on request is the builder's combination, byte for byte."""

import asyncio
import json
from pathlib import Path

import pytest

from builder.app import workbenches
from builder.build import BuildOptions, Reporter
from builder.chunk_images import chunk_of
from builder.project_files import load_project
from builder.settings import BuilderSettings
from ocikit.layout import LayoutRepository
from ocikit.manifest import Manifest
from ocikit.reference import RepositoryName
from tests.support.builder_project import Lapstrake
from tests.support.dazzle_shape import TarEngine, write_dazzle_shape
from tests.support.facade import running_facade

QUIET = Reporter(lambda _: None, lambda _name, _line: None)


@pytest.mark.parametrize("combination", ["full-mysql", "base"])
async def test_facade_gives_the_very_manifest_that_the_builder_stored(
    combination: str, tmp_path: Path
) -> None:
    project = write_dazzle_shape(tmp_path / "project")
    layout, settings = tmp_path / "layout", BuilderSettings(state_dir=tmp_path / "state", jobs=8)
    to = f"oci:{layout}"
    wanted = load_project(project).combination(combination).chunks
    async with workbenches(project, RepositoryName.parse(to), settings, QUIET) as (bench,):
        builder = bench.builder(TarEngine(), BuildOptions(8, 0))
        base = await builder.base()
        done = await builder.chunks(list(wanted), base.image)
    lapstrake = Lapstrake(settings.state_dir)
    words = ("combine", project, "--to", to, "--combination", combination, "--no-test", "--json")
    assert (await asyncio.to_thread(lapstrake, *words)).document
    stored = await LayoutRepository(layout).manifest(combination)
    images = {item.planned.chunk: item.image.descriptor.digest for item in done}
    order = dict.fromkeys(filter(None, map(chunk_of, Manifest.parse(stored.data).layers)))
    specs = tmp_path / "specs"
    specs.mkdir()
    spec = {
        "base": f"images/x@{base.image.descriptor.digest}",
        "chunks": [f"images/x@{images[name]}" for name in order if name in images],
        "chunk_env": {"PATH": "merge-unique", "HOME": "use-last"},
    }
    (specs / "ws.json").write_text(json.dumps(spec))
    async with running_facade(tmp_path / "cache", upstreams={"images": to}, image_specs=specs) as facade:
        status, headers, body = await facade.get("/v2/workspaces/ws/manifests/latest")
        assert status == 200, body
        assert body == stored.data
        assert headers["Docker-Content-Digest"] == stored.digest
        config = Manifest.parse(body).config.digest
        status, _, found = await facade.get(f"/v2/workspaces/ws/blobs/{config}")
        assert (status, found) == (200, (layout / "blobs/sha256" / config.encoded).read_bytes())


async def test_chunk_of_another_base_is_refused_with_its_name(tmp_path: Path) -> None:
    from tests.support.images import made_layer, push_image

    repository = LayoutRepository(tmp_path / "layout", create=True)
    await push_image(repository, "base", [made_layer({"a": b"1"})])
    await push_image(repository, "chunk", [made_layer({"b": b"1"})])
    specs = tmp_path / "specs"
    specs.mkdir()
    (specs / "ws.json").write_text(json.dumps({"base": "images/x:base", "chunks": ["images/x:chunk"]}))
    upstreams = {"images": f"oci:{tmp_path}/layout"}
    async with running_facade(tmp_path / "cache", upstreams=upstreams, image_specs=specs) as facade:
        status, _, body = await facade.get("/v2/workspaces/ws/manifests/latest")
        assert status == 422
        assert "chunk images/x:chunk was not built from" in json.loads(body)["errors"][0]["message"]
