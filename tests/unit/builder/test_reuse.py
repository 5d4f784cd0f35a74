"""Reuse metrics against a brute-force oracle."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.chunk_images import UNCOMPRESSED_BYTES
from builder.reuse import (
    ImageUse,
    churn,
    image_costs,
    image_use,
    pull_matrix,
    refcount_histogram,
    report,
)
from builder.reuse_diff import Miss, diff
from builder.reuse_page import reuse_page
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


@given(stacks)
def test_histogram_matrix_and_costs_equal_a_brute_force_oracle(given_stacks: list[list[tuple[str, int]]]):
    images = [image(str(at), stack) for at, stack in enumerate(given_stacks)]
    held = [{blob(*layer) for layer in stack} for stack in given_stacks]
    every = set().union(*held)
    for step, layers, size in refcount_histogram(images):
        used = [one for one in every if sum(one in blobs for blobs in held) >= step]
        assert (layers, size) == (len(used), sum(one[1] for one in used))
    matrix = pull_matrix(images)
    for at, blobs in enumerate(held):
        assert matrix[""][str(at)] == sum(size for _, size in blobs)
        for other, others in enumerate(held):
            assert matrix[str(other)][str(at)] == sum(size for _, size in blobs - others)
    costs = image_costs(images)
    assert abs(sum(cost.fair_bytes for cost in costs) - sum(size for _, size in every)) < 1e-6
    for cost, blobs in zip(costs, held, strict=True):
        alone = [one for one in blobs if sum(one in others for others in held) == 1]
        assert (cost.size_bytes, cost.marginal_bytes) == (sum(s for _, s in blobs), sum(s for _, s in alone))


def test_churn_counts_what_each_version_made_anew():
    found = churn([[image("1", [("a", 0), ("b", 0)])], [image("2", [("a", 0), ("c", 0)])]])
    assert len(found) == 1  # nobody wrote chunk names here
    assert found[0].new_bytes == blob("c", 0)[1]
    assert found[0].total_bytes == blob("a", 0)[1] + blob("c", 0)[1]
    assert found[0].survival == 4 / 3


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([("a", 0)], [("a", 0)], []),
        ([("a", 0)], [("a", 1)], [Miss.RECOMPRESSED]),
        ([("a", 0), ("b", 0)], [("b", 0), ("a", 0)], [Miss.REORDERED, Miss.REORDERED]),
        ([("a", 0)], [("b", 0)], [Miss.NEW]),
    ],
)
def test_says_why_layers_are_not_shared(first, second, expected):
    found = diff(image("1", first), image("2", second))
    assert [miss.reason for miss in found.misses] == expected


def test_says_when_the_same_inputs_gave_another_content_and_when_inputs_changed():
    def use(content: str, input_hash: str) -> ImageUse:
        layer = image("x", [(content, 0)]).layers[0]
        return ImageUse("x", (replace(layer, chunk="go", input_hash=input_hash),))

    assert diff(use("a", "1"), use("b", "1")).misses[0].reason is Miss.NONDETERMINISTIC
    assert diff(use("a", "1"), use("b", "2")).misses[0].reason is Miss.CHANGED


def test_the_page_draws_every_layer_to_scale_and_escapes_names():
    images = [image("r/<x>:a", [("a", 0), ("b", 0)]), image("r/y", [("a", 0)])]
    page = reuse_page(images)
    assert page.count('<span class="shared l') == 2
    assert page.count('<span class="own l') == 1
    assert "&lt;x&gt;" in page
    assert "<x>" not in page
    widths = re.findall(r'<span class="[a-z]+ l\d+" style="width: ([0-9.]+)%', page)
    sizes = [layer.size_bytes for one in images for layer in one.layers]
    assert [float(width) for width in widths] == pytest.approx(
        [100 * size / sum(sizes[:2]) for size in sizes], abs=0.001
    )
    assert page.count("body:has(") == 1  # what is in one image only has nowhere else to be shown


def test_a_page_of_nothing_is_a_page():
    assert "0 of 0 contents" in reuse_page([])
