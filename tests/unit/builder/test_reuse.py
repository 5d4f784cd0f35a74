"""Reuse metrics against a brute-force oracle."""

from hypothesis import given
from hypothesis import strategies as st

from builder.chunk_images import UNCOMPRESSED_BYTES
from builder.reuse import ImageUse, image_use, report
from ocikit import media_types
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest, chain_id
from ocikit.image_config import ImageConfig
from ocikit.manifest import Manifest, RawManifest
from ocikit.repository import Image

CONTENTS = {name: (Digest.of(name.encode()), (at + 1) * 100) for at, name in enumerate("abcdef")}


def blob(name: str, form: int) -> tuple[Digest, int]:
    """The bytes of a content in one of several compressed forms."""
    return Digest.of(f"{name}{form}".encode()), CONTENTS[name][1] // 2 + form


def image(name: str, layers: list[tuple[str, int]], *, annotated: bool = True) -> ImageUse:
    descriptors = tuple(
        Descriptor(
            media_types.OCI_LAYER_GZIP,
            *blob(content, form),
            {UNCOMPRESSED_BYTES: str(CONTENTS[content][1])} if annotated else {},
        )
        for content, form in layers
    )
    config = ImageConfig(Platform("linux", "amd64"), tuple(CONTENTS[content][0] for content, _ in layers))
    manifest = Manifest(Descriptor(media_types.OCI_CONFIG, Digest.of(b""), 0), descriptors)
    raw = RawManifest.of(media_types.OCI_MANIFEST, manifest.dump())
    return image_use(name, Image(raw, manifest, config))


stacks = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 1)), max_size=5), min_size=1, max_size=6
)


@given(stacks)
def test_equals_a_brute_force_oracle(given_stacks: list[list[tuple[str, int]]]):
    found = report([image(str(at), stack) for at, stack in enumerate(given_stacks)])
    blobs = [blob(*layer) for stack in given_stacks for layer in stack]
    assert found.logical_bytes == sum(size for _, size in blobs)
    assert found.physical_bytes == sum(size for _, size in set(blobs))
    waste = 0
    for content in CONTENTS:
        forms = {form for stack in given_stacks for name, form in stack if name == content}
        sizes = sorted(blob(content, form)[1] for form in forms)
        waste += sum(sizes[1:])
    assert found.recompression_waste_bytes == waste
    chains = {
        chain_id([CONTENTS[name][0] for name, _ in stack[: depth + 1]]): CONTENTS[stack[depth][0]][1]
        for stack in given_stacks
        for depth in range(len(stack))
    }
    contents = {name: CONTENTS[name][1] for stack in given_stacks for name, _ in stack}
    assert (found.unpacked_bytes, found.content_bytes) == (sum(chains.values()), sum(contents.values()))


def test_nothing_shared_and_everything_shared():
    assert report([image("x", [("a", 0)]), image("y", [("b", 0)])]).dedupe_ratio == 1.0
    assert report([image("x", [("a", 0)]), image("y", [("a", 0)])]).dedupe_ratio == 2.0
    assert report([]).dedupe_ratio == 1.0


def test_the_order_penalty_counts_what_is_unpacked_again():
    found = report([image("x", [("a", 0), ("b", 0)]), image("y", [("b", 0), ("a", 0)])])
    assert found.order_penalty == 2.0


def test_without_uncompressed_sizes_the_penalty_is_unknown():
    assert report([image("x", [("a", 0)], annotated=False)]).order_penalty is None
