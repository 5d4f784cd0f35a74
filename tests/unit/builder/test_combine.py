"""Joining chunks into an image: pure, from manifests and configs alone."""

import pytest

from builder.chunk_images import StoredChunk
from ocikit import media_types
from ocikit.combine import BASE_DIGEST, combine
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.env_merge import EnvAction
from ocikit.errors import InvalidManifest, NotBuiltFromBase
from ocikit.image_config import ImageConfig
from ocikit.manifest import Manifest, RawManifest
from ocikit.repository import Image


def image(
    layers: list[str], execution: dict[str, object], annotations: dict[str, str] | None = None
) -> Image:
    digests = tuple(Digest.of(layer.encode()) for layer in layers)
    config = ImageConfig(Platform("linux", "amd64"), digests, execution=execution)
    descriptors = tuple(Descriptor(media_types.OCI_LAYER_GZIP, digest, 10) for digest in digests)
    data = config.dump()
    described = Descriptor(media_types.OCI_CONFIG, Digest.of(data), len(data))
    manifest = Manifest(described, descriptors, annotations=annotations or {})
    return Image(RawManifest.of(media_types.OCI_MANIFEST, manifest.dump()), manifest, config)


BASE = image(
    ["base"], {"Env": ["PATH=/bin"], "User": "me", "Cmd": ["sh"], "Labels": {"a": "base", "b": "base"}}
)


def chunk(name: str, **changes: object) -> StoredChunk:
    execution = {**BASE.config.execution, **changes}
    return StoredChunk(name, image([name], execution, {BASE_DIGEST: str(BASE.descriptor.digest)}))


def execution(*chunks: StoredChunk) -> dict[str, object]:
    made = combine(BASE, "base--1", chunks, {"PATH": EnvAction.MERGE_UNIQUE})
    return dict(ImageConfig.parse(made.image.config).execution)


def test_labels_volumes_and_ports_are_united_and_the_bases_are_kept():
    one = chunk(
        "a", Labels={"a": "base", "b": "one", "c": "1"}, Volumes={"/x": {}}, ExposedPorts={"80/tcp": {}}
    )
    other = chunk("b", ExposedPorts={"81/tcp": {}})
    found = execution(one, other)
    assert found["Labels"] == {"a": "base", "b": "one", "c": "1"}
    assert found["ExposedPorts"] == {"80/tcp": {}, "81/tcp": {}}
    assert found["Volumes"] == {"/x": {}}


def test_an_inherited_user_does_not_undo_an_earlier_chunks_change():
    assert execution(chunk("a", User="root"), chunk("b"))["User"] == "root"


def test_entrypoint_and_cmd_move_together_and_disagreement_is_noted():
    one, other = chunk("a", Entrypoint=["x"], Cmd=None), chunk("b", Cmd=["y"])
    assert execution(one, other) == {**BASE.config.execution, "Cmd": ["y"]}
    notes = combine(BASE, "base--1", [one, other], {}).notes
    assert notes == ("Entrypoint/Cmd is set by a, b; the last counts",)


def test_the_same_inputs_give_the_same_bytes():
    chunks = [chunk("a", Env=["PATH=/a:/bin", "X=1=2"]), chunk("b", Env=["PATH=/b:/bin"])]
    first, again = (
        combine(BASE, "base--1", chunks, {"PATH": EnvAction.MERGE_UNIQUE}).image for _ in range(2)
    )
    assert (first.manifest, first.config) == (again.manifest, again.config)
    assert ImageConfig.parse(first.config).env == {"PATH": "/a:/b:/bin", "X": "1=2"}


def test_a_chunk_of_another_base_is_refused():
    stranger = StoredChunk("s", image(["s"], {}, {BASE_DIGEST: "sha256:" + "0" * 64}))
    with pytest.raises(NotBuiltFromBase, match="chunk s was not built from base--1"):
        combine(BASE, "base--1", [stranger], {})


def test_more_layers_than_runtimes_stack_are_refused():
    with pytest.raises(InvalidManifest, match="128 layers; container runtimes take at most 127"):
        combine(BASE, "base--1", [chunk(f"c{number}") for number in range(127)], {})
