"""descriptor, manifest, image_config, compose, strip_base, validate."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit import media_types
from ocikit.compose import MAX_LAYERS, Addition, compose, compose_index, strip_base
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidConfig, InvalidInput, InvalidManifest, NotBuiltFromBase, UnsupportedMediaType
from ocikit.image_config import ImageConfig, layer_history
from ocikit.manifest import Index, Manifest, RawManifest, detect_media_type, parse_manifest_or_index
from ocikit.testing.images import image_of, random_image, random_layer
from ocikit.validate import image_violations

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_DIGESTS = st.binary(max_size=8).map(Digest.of)
_DESCRIPTORS = st.builds(
    Descriptor,
    st.sampled_from([media_types.OCI_LAYER, media_types.OCI_LAYER_GZIP, "application/x"]),
    _DIGESTS,
    st.integers(0, 1 << 62),
    st.dictionaries(_TEXT, _TEXT, max_size=2),
    st.none()
    | st.builds(Platform, st.just("linux"), st.sampled_from(["amd64", "arm64"]), st.sampled_from(["", "v8"])),
    extra=st.dictionaries(st.sampled_from(["urls", "data"]), _TEXT, max_size=1),
)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(_DESCRIPTORS)
def test_a_descriptor_keeps_everything(descriptor: Descriptor) -> None:
    assert Descriptor.parse(json.loads(json.dumps(descriptor.dump()))) == descriptor


@given(_DESCRIPTORS, st.lists(_DESCRIPTORS, max_size=4), st.dictionaries(_TEXT, _TEXT, max_size=2))
def test_manifest_and_index_keep_everything(
    config: Descriptor, parts: list[Descriptor], annotations: dict[str, str]
) -> None:
    manifest = Manifest(config, tuple(parts), annotations=annotations, subject=config, extra={"x": 1})
    assert Manifest.parse(manifest.dump()) == manifest
    assert Manifest.parse(manifest.dump()).dump() == manifest.dump()
    index = Index(tuple(parts), annotations=annotations, extra={"y": [1]})
    assert Index.parse(index.dump()) == index


_MUTABLE = [
    "config",
    "layers",
    "annotations",
    "subject",
    "artifactType",
    "mediaType",
    "schemaVersion",
    "manifests",
]


@given(st.sampled_from(_MUTABLE), _JSON)
def test_whatever_a_field_holds_a_manifest_is_read_or_refused(field: str, value: Any) -> None:
    document = {**json.loads(random_image(1, layers=1).raw.data), field: value}
    data = json.dumps(document).encode()
    for media_type in (media_types.OCI_MANIFEST, media_types.OCI_INDEX):
        try:
            parse_manifest_or_index(RawManifest.of(media_type, data)).dump()
        except InvalidInput:
            continue


@given(st.sampled_from(["config", "rootfs", "history", "os", "created", "x"]), _JSON)
def test_whatever_a_field_holds_a_config_is_read_or_refused(field: str, value: Any) -> None:
    data = json.dumps({**json.loads(random_image(1).config_bytes), field: value}).encode()
    try:
        config = ImageConfig.parse(data)
    except InvalidInput:
        return
    dict(config.env)
    config.dump()


@given(st.binary(max_size=40))
def test_any_bytes_are_refused_as_a_manifest(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        Manifest.parse(data)
    with pytest.raises(InvalidConfig):
        ImageConfig.parse(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schemaVersion": 1}, "schemaVersion 1 is not 2"),
        ({"mediaType": media_types.OCI_INDEX}, "does not belong here"),
        ({"manifests": []}, "both layers and manifests"),
        ({"config": None}, "config: must be an object|must be an object"),
        ({"layers": [{"mediaType": "x", "digest": "sha256:0", "size": 1}]}, "invalid digest"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    document = {**json.loads(random_image(1).raw.data), **change}
    with pytest.raises(InvalidInput, match=reason):
        Manifest.parse(json.dumps(document).encode(), media_types.OCI_MANIFEST)


def test_the_announced_type_must_be_the_stated_one() -> None:
    with pytest.raises(InvalidManifest, match="was announced as"):
        Manifest.parse(random_image(1).raw.data, media_types.DOCKER_MANIFEST)
    with pytest.raises(UnsupportedMediaType):
        parse_manifest_or_index(RawManifest.of("text/html", b"<html>"))


@pytest.mark.parametrize(
    ("document", "announced", "expected"),
    [
        ({"mediaType": "a/b"}, "c/d", "a/b"),
        ({}, media_types.DOCKER_MANIFEST, media_types.DOCKER_MANIFEST),
        ({"manifests": []}, "application/json", media_types.OCI_INDEX),
        ({}, "", media_types.OCI_MANIFEST),
    ],
)
def test_media_types_are_detected(document: dict[str, Any], announced: str, expected: str) -> None:
    assert detect_media_type(json.dumps({"schemaVersion": 2, **document}).encode(), announced) == expected


def test_a_platform_prefers_its_own_variant() -> None:
    items = [
        Descriptor("m", Digest.of(variant.encode()), 1, platform=Platform("linux", "arm", variant))
        for variant in ("v6", "v7")
    ]
    index = Index(tuple(items))
    assert index.select(Platform("linux", "arm", "v7")) == items[1]
    assert index.select(Platform("linux", "arm")) == items[0]
    assert index.select(Platform("linux", "arm", "v8")) is None
    with pytest.raises(ValueError, match="is not a platform"):
        Platform.parse("linux")


def test_composing_is_deterministic_and_keeps_what_the_base_had() -> None:
    base, extra = random_image(1), random_layer(99)
    config = dataclasses.replace(base.config, extra={"x-vendor": {"kept": True}}).with_execution(
        {"Healthcheck": {}}
    )
    addition = Addition((extra.layer,), ({"created_by": "me"},), "2025-01-01T00:00:00Z")
    edits = [lambda current: current.with_env({**current.env, "A": "1"})]
    one, two = (compose(base.manifest, config, [addition], edits, {"note": "n"}) for _ in range(2))
    assert (one.manifest, one.config) == (two.manifest, two.config)
    made = ImageConfig.parse(one.config)
    assert made.extra == {"x-vendor": {"kept": True}}
    assert made.execution["Healthcheck"] == {}
    assert list(made.env.items()) == [("PATH", "/usr/bin:/bin"), ("A", "1")]
    assert made.created == "2025-01-01T00:00:00Z"
    assert layer_history(made.history) == len(made.diff_ids) == 4
    assert image_violations(Manifest.parse(one.manifest), one.config) == []


@given(st.integers(0, 4), st.integers(0, 4))
def test_stripping_the_base_undoes_composing(base_layers: int, own_layers: int) -> None:
    base = image_of([random_layer(at, files=1) for at in range(base_layers)])
    own = tuple(random_layer(100 + at, files=1).layer for at in range(own_layers))
    addition = Addition(
        own, tuple({"created_by": f"own {at}"} for at in range(own_layers)), base.config.created
    )
    made = compose(base.manifest, base.config, [addition])
    found = strip_base(
        Manifest.parse(made.manifest), ImageConfig.parse(made.config), base.config, ("image", "base")
    )
    assert found == addition


def test_an_image_from_another_base_is_not_stripped() -> None:
    image, other = random_image(1), random_image(2)
    with pytest.raises(NotBuiltFromBase, match="image was not built from base: layer 0 is"):
        strip_base(image.manifest, image.config, other.config, ("image", "base"))
    small = random_image(1, layers=1)
    with pytest.raises(NotBuiltFromBase, match="it has 1 layers, the base has 3"):
        strip_base(small.manifest, small.config, image.config, ("image", "base"))


def test_more_layers_than_runtimes_stack_are_refused() -> None:
    base, layer = random_image(1), random_layer(5).layer
    compose(base.manifest, base.config, [Addition((layer,) * (MAX_LAYERS - 3))])
    with pytest.raises(InvalidManifest, match="128 layers; container runtimes take at most 127"):
        compose(base.manifest, base.config, [Addition((layer,) * (MAX_LAYERS - 2))])


def test_an_index_is_the_same_whatever_the_order_of_its_images() -> None:
    base = random_image(1)
    images = [
        compose(base.manifest, dataclasses.replace(base.config, platform=Platform("linux", name)), [])
        for name in ("s390x", "amd64", "arm64")
    ]
    index = compose_index(images)
    assert index == compose_index(images[::-1])
    listed = Index.parse(index.data).manifests
    assert [str(item.platform) for item in listed] == ["linux/amd64", "linux/arm64", "linux/s390x"]
    assert {item.digest for item in listed} == {image.manifest_descriptor.digest for image in images}
    with pytest.raises(InvalidManifest, match="two images for the same platform"):
        compose_index([images[0], images[0]])


def test_docker_parts_are_described_in_oci_terms() -> None:
    base = random_image(1)
    docker = dataclasses.replace(
        base.manifest,
        layers=tuple(
            dataclasses.replace(layer, media_type=media_types.DOCKER_LAYER_GZIP)
            for layer in base.manifest.layers
        ),
    )
    made = compose(docker, base.config, [])
    assert {layer.media_type for layer in made.layers} == {media_types.OCI_LAYER_GZIP}


def test_validation_finds_every_violation_not_the_first() -> None:
    image = random_image(1, compression="")
    assert image_violations(image.manifest, image.config_bytes) == []
    config = dataclasses.replace(
        image.config,
        platform=Platform("", ""),
        diff_ids=(Digest.of(b"x"), *image.config.diff_ids[1:2]),
        history=({},),
    ).dump()
    found = "; ".join(image_violations(image.manifest, config))
    for part in (
        "bytes, its descriptor says",
        "config is not",
        "3 layers but 2 diff_ids",
        "history tells of 1",
        "names no platform",
        "differs from its diff_id",
    ):
        assert part in found
    assert len(image_violations(image.manifest, b"{")) == 3
