"""Images that somebody else made badly, through the command line: one clear line, nothing half-done."""

import dataclasses
import gzip
import re
from pathlib import Path

import pytest

from builder.app import workbenches
from builder.build import BuildOptions, Reporter
from builder.images import wanted_images
from builder.settings import BuilderSettings
from ocikit import media_types
from ocikit.combine import BASE_DIGEST
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import InvalidManifest
from ocikit.layout import LayoutRepository
from ocikit.manifest import Manifest, RawManifest
from ocikit.reference import RepositoryName
from tests.support.builder_project import CHUNK, Lapstrake, write_project
from tests.support.dazzle_shape import TarEngine
from tests.support.images import MadeLayer, image_documents, made_layer, push_image


@pytest.fixture
def lapstrake(tmp_path: Path) -> Lapstrake:
    return Lapstrake(tmp_path / "state")


def layer_of(blob: bytes, content: bytes) -> MadeLayer:
    descriptor = Descriptor(media_types.OCI_LAYER_GZIP, Digest.of(blob), len(blob))
    return MadeLayer(
        blob, dataclasses.replace(made_layer({}).layer, descriptor=descriptor, diff_id=Digest.of(content))
    )


GOOD = made_layer({"a": b"1"})
TEXT = b"no tar at all " * 100


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        pytest.param(layer_of(gzip.compress(TEXT, mtime=0), TEXT), "not a tar", id="not a tar"),
        pytest.param(layer_of(TEXT, TEXT), "not gzip", id="not gzip"),
        pytest.param(
            layer_of(GOOD.blob[:-9], b""), "the gzip stream is cut short", id="the gzip stream is cut short"
        ),
        pytest.param(made_layer({"../../out": b""}), "the entry .* leads out of the root", id="leads out"),
    ],
)
async def test_a_layer_that_is_none_is_named(
    tmp_path: Path, lapstrake: Lapstrake, layer: MadeLayer, expected: str
):
    await push_image(LayoutRepository(tmp_path / "images", create=True), "bad", [GOOD, layer])
    target = tmp_path / "out" / "rootfs.tar"
    target.parent.mkdir()
    done = lapstrake("export", f"oci:{tmp_path / 'images'}:bad", "--format", "rootfs-tar", "-o", target)
    assert done.status == 6
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(rf"layer \w+ cannot be used: {expected}", errors[0])
    assert "Traceback" not in done.stderr
    assert list(target.parent.iterdir()) == []


async def test_a_combination_of_too_many_chunks_is_named(tmp_path: Path):
    names = [f"c{at}" for at in range(127)]
    files = {f"chunks/{name}/Dockerfile": CHUNK for name in names}
    combiner = f"combiner:\n  combinations:\n    - {{name: tall, chunks: [{', '.join(names)}]}}\n"
    project = write_project(tmp_path / "p", files, combiner=combiner)
    to = RepositoryName.parse(f"oci:{tmp_path / 'images'}")
    settings = BuilderSettings(state_dir=tmp_path / "state", jobs=2)
    async with workbenches(project, to, settings, Reporter(lambda _: None, lambda *_: None)) as (bench,):
        builder = bench.builder(TarEngine(), BuildOptions(2, 0))
        base = await builder.base()
        await builder.chunks(names, base.image)
        maker = bench.image_maker(None)
        parts = await maker.load(names)
        with pytest.raises(InvalidManifest, match=r"^invalid image tall: 128 layers; "):
            await maker.make(wanted_images(bench.project, ["tall"]), parts)


async def test_more_layers_than_runtimes_stack_are_refused_and_get_no_name(
    tmp_path: Path, lapstrake: Lapstrake
):
    images = LayoutRepository(tmp_path / "images", create=True)
    base = await push_image(images, "base", [made_layer({"base": b"1"})])
    layers = [made_layer({"base": b"1"}), *(made_layer({f"f{at}": b"1"}) for at in range(126))]
    for made in layers:
        async with images.blobs.ingest(made.layer.descriptor.digest, len(made.blob)) as writer:
            await writer.write(made.blob)
            await writer.commit()
    data, config = image_documents(layers)
    manifest = dataclasses.replace(Manifest.parse(data), annotations={BASE_DIGEST: str(base.digest)})
    async with images.blobs.ingest(Digest.of(config), len(config)) as writer:
        await writer.write(config)
        await writer.commit()
    await images.put_manifest(RawManifest.of(media_types.OCI_MANIFEST, manifest.dump()), "most")
    await push_image(images, "taller", [made_layer({"base": b"1"}), made_layer({"more": b"1"})])
    to = f"oci:{tmp_path / 'images'}"
    move = ("rebase", f"{to}:most", "--no-test", "--onto")
    assert lapstrake(*move, f"{to}:base", "--to", f"{to}:same").status == 0
    refused = lapstrake(*move, f"{to}:taller", "--to", f"{to}:moved")
    assert refused.status == 4
    assert "128 layers; container runtimes take at most 127" in refused.stderr
    assert "moved" not in await images.tags()
