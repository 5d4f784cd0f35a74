"""SOCI: gzip layers are indexed once they are in the cache, and composed images name the index."""

import asyncio
import contextlib
import dataclasses
import gzip
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from ocikit.manifest import Index, Manifest, RawManifest
from registry_facade.settings import AccessSettings
from servicekit.secrets import Secret
from servicekit.settings import SettingsInvalid
from tests.support.facade import FacadeProcess, RunningFacade, facade_process, running_facade
from tests.support.images import AMD64, MadeLayer, image_documents, made_layer, push_image
from tests.support.ztoc import read_ztoc

INDEX_DIGEST = "com.amazon.soci.index-digest"
LAYER_DIGEST = "com.amazon.soci.image-layer-digest"
ARTIFACT = "application/vnd.amazon.soci.index.v2+json"
ARM64 = Platform("linux", "arm64")
DEADLINE_S = 60.0

MIB = 1 << 20
NOISE = random.Random(1).randbytes(11 * MIB)
FILES = {"data/noise": NOISE, "data/small": b"small\n"}
BIG = made_layer(FILES)
OTHER = made_layer({"opt/noise": NOISE[::-1], "opt/small": b"other\n"})
TINY = made_layer({"bin/sh": b"a shell"})


def as_layer(blob: bytes, media_type: str = media_types.OCI_LAYER_GZIP) -> MadeLayer:
    """Whatever ``blob`` is; its diff_id is made up."""
    return MadeLayer(blob, Layer(Descriptor(media_type, Digest.of(blob), len(blob)), Digest.of(blob[:100])))


def uncompressed(made: MadeLayer) -> bytes:
    return gzip.decompress(made.blob)


@dataclass(frozen=True)
class Shop:
    """An upstream layout, and the specs of images made of it."""

    root: Path

    @property
    def layout(self) -> LayoutRepository:
        return LayoutRepository(self.root / "layout", create=True)

    def write(self, image_id: str = "ws", **spec: Any) -> None:
        (self.root / "specs").mkdir(exist_ok=True)
        made = {"base": "images/app:v1", "env": {"A": "b"}, **spec}
        (self.root / "specs" / f"{image_id}.json").write_text(json.dumps(made))

    async def hold(self, *layers: MadeLayer) -> None:
        await push_image(self.layout, "v1", layers)
        self.write()

    def facade(
        self, cache: str = "cache", **settings: Any
    ) -> contextlib.AbstractAsyncContextManager[RunningFacade]:
        chosen = {"soci": True, "image_specs": self.root / "specs", **settings}
        upstreams = {"images": f"oci:{self.root}/layout"}
        return running_facade(self.root / cache, upstreams=upstreams, **chosen)

    def process(self, *arguments: str) -> contextlib.AbstractContextManager[FacadeProcess]:
        fixed = ("--upstream", f"images=oci:{self.root}/layout", "--image-specs", str(self.root / "specs"))
        return facade_process(self.root, *fixed, *arguments, env={"LAPSTRAKE_FACADE_SOCI": "true"})


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


async def until(fact: Callable[[], Awaitable[bool]]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not await fact():
        assert time.monotonic() < deadline_s, "it took too long"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Pulled:
    digest: Digest
    manifest: Manifest

    @property
    def index(self) -> str:
        return self.manifest.annotations.get(INDEX_DIGEST, "")


async def latest(facade: RunningFacade, image_id: str = "ws") -> Pulled:
    status, headers, body = await facade.get(f"/v2/workspaces/{image_id}/manifests/latest")
    assert status == 200, body
    return Pulled(Digest(headers["Docker-Content-Digest"]), Manifest.parse(body))


async def fetched(facade: RunningFacade, reference: str, kind: str = "blobs") -> bytes:
    status, _, body = await facade.get(f"/v2/workspaces/ws/{kind}/{reference}")
    assert status == 200, body
    return body


async def pulled_whole(facade: RunningFacade) -> Pulled:
    """As a client pulls it that knows nothing of SOCI."""
    found = await latest(facade)
    for layer in found.manifest.layers:
        assert Digest.of(await fetched(facade, layer.digest)) == layer.digest
    return found


async def until_counted(facade: RunningFacade, outcome: str, times: int = 1) -> None:
    async def counted() -> bool:
        return await facade.metric("facade_soci_layers_total", outcome=outcome) >= times

    await until(counted)


async def indexed(facade: RunningFacade) -> Pulled:
    """The image once it names an index."""
    found: list[Pulled] = []

    async def named() -> bool:
        found[:] = [await latest(facade)]
        return bool(found[0].index)

    await until(named)
    return found[0]


async def ztocs_of(facade: RunningFacade, image: Pulled) -> dict[str, str]:
    """The zTOC of each layer that has one."""
    index = json.loads(await fetched(facade, image.index, "manifests"))
    return {item["annotations"][LAYER_DIGEST]: item["digest"] for item in index["layers"]}


async def put(shop: Shop, manifest: Manifest, tag: str | None = None) -> Descriptor:
    """A manifest whose blobs are there already."""
    return await shop.layout.put_manifest(RawManifest.of(media_types.OCI_MANIFEST, manifest.dump()), tag)


# ----- what is made -----


async def test_layer_that_streamed_through_is_indexed_and_the_composed_image_names_the_index(
    shop: Shop,
) -> None:
    await shop.hold(TINY, BIG)
    async with shop.facade() as facade:
        plain = await pulled_whole(facade)
        assert not plain.index
        image = await indexed(facade)
        assert image.manifest.layers == plain.manifest.layers
        ztocs = await ztocs_of(facade, image)
        assert list(ztocs) == [BIG.layer.descriptor.digest]
        ztoc = read_ztoc(await fetched(facade, ztocs[BIG.layer.descriptor.digest]))
        assert {name: ztoc.content(BIG.blob, name) for name in FILES} == FILES


async def test_index_is_the_bytes_that_go_makes_of_it(shop: Shop) -> None:
    """The snapshotter writes it anew and stores it under the digest that it read."""
    await shop.hold(BIG)
    async with shop.facade() as facade:
        await pulled_whole(facade)
        image = await indexed(facade)
        data = await fetched(facade, image.index, "manifests")
        (ztoc,) = (await ztocs_of(facade, image)).values()
        size = len(await fetched(facade, ztoc))
        assert await fetched(facade, Digest.of(b"{}")) == b"{}"
    layer = BIG.layer.descriptor.digest
    assert data.decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        f'"config":{{"mediaType":"{ARTIFACT}","digest":"{Digest.of(b"{}")}","size":2}},'
        f'"layers":[{{"mediaType":"application/octet-stream","digest":"{ztoc}","size":{size},'
        f'"annotations":{{"com.amazon.soci.image-layer-digest":"{layer}",'
        '"com.amazon.soci.image-layer-mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",'
        '"com.amazon.soci.span-size":"4194304"}}],'
        '"annotations":{"com.amazon.soci.build-tool-identifier":"lapstrake 1"}}'
    )


async def test_nodes_and_restarts_make_the_same_two_images_and_both_stay_pullable(shop: Shop) -> None:
    await shop.hold(BIG)
    seen: set[tuple[Digest, Digest]] = set()
    for cache in ("one", "two"):
        async with shop.facade(cache) as facade:
            plain = await pulled_whole(facade)
            image = await indexed(facade)
            seen.add((plain.digest, image.digest))
        async with shop.facade(cache) as facade:
            assert (await latest(facade)).digest == image.digest
            for digest in (plain.digest, image.digest):
                assert Digest.of(await fetched(facade, digest, "manifests")) == digest
    assert len(seen) == 1


async def test_node_that_has_all_layers_indexed_serves_the_plain_image_that_another_issued(
    shop: Shop,
) -> None:
    await shop.hold(BIG)
    async with shop.facade("one") as facade:
        plain = await pulled_whole(facade)
    shop.write("other")
    async with shop.facade("two") as facade:
        await pulled_whole(facade)
        await indexed(facade)
        assert (await latest(facade, "other")).index
        status, _, body = await facade.get(f"/v2/workspaces/other/manifests/{plain.digest}")
        assert (status, Digest.of(body)) == (200, plain.digest)


async def test_by_default_nothing_is_indexed(shop: Shop) -> None:
    await shop.hold(BIG)
    async with shop.facade() as facade:
        await pulled_whole(facade)
        await indexed(facade)
    async with shop.facade(soci=False) as facade:
        assert not (await latest(facade)).index
        assert await facade.metric("facade_soci_layers_total") == 0


async def test_layers_that_were_there_before_are_indexed_when_an_image_of_them_is_composed(
    shop: Shop,
) -> None:
    await shop.hold(BIG, OTHER)
    async with shop.facade(soci=False) as facade:
        await pulled_whole(facade)
    async with shop.facade() as facade:
        assert len(await ztocs_of(facade, await indexed(facade))) == 2


async def test_image_waits_for_nothing_and_names_an_index_when_all_of_its_layers_are_known(
    shop: Shop,
) -> None:
    await shop.hold(BIG, OTHER)
    async with shop.facade() as facade:
        await fetched(facade, (await latest(facade)).manifest.layers[0].digest)
        await until_counted(facade, "indexed")
        shop.write("fresh")
        assert not (await latest(facade, "fresh")).index
        await pulled_whole(facade)
        assert len(await ztocs_of(facade, await indexed(facade))) == 2


async def test_layer_of_the_facade_itself_that_is_a_large_gzip_is_indexed_too(shop: Shop) -> None:
    await shop.hold(TINY)
    (shop.root / "specs" / "noise").write_bytes(NOISE)
    shop.write(layers=[{"file": "noise", "at": "/opt/noise"}])
    async with shop.facade(lazy_layers="estargz") as facade:
        image = await indexed(facade)
        made = image.manifest.layers[-1].digest
        ztoc = read_ztoc(await fetched(facade, (await ztocs_of(facade, image))[made]))
        assert ztoc.content(await fetched(facade, made), "opt/noise") == NOISE


async def test_index_of_several_platforms_lists_the_soci_index_of_each_that_has_one(shop: Shop) -> None:
    amd64 = await push_image(shop.layout, None, [BIG])
    arm64 = await push_image(shop.layout, None, [OTHER], platform=ARM64)
    data, _ = image_documents([BIG])
    foreign = await put(shop, dataclasses.replace(Manifest.parse(data), artifact_type=ARTIFACT))
    listed = (
        dataclasses.replace(amd64, platform=AMD64),
        dataclasses.replace(arm64, platform=ARM64),
        dataclasses.replace(foreign, platform=AMD64, artifact_type=ARTIFACT),
    )
    await shop.layout.put_manifest(RawManifest.of(media_types.OCI_INDEX, Index(listed).dump()), "v1")
    shop.write()
    async with shop.facade() as facade:

        async def top() -> Index:
            return Index.parse(await fetched(facade, "latest", "manifests"))

        plain = await top()
        assert [item.platform for item in plain.manifests] == [AMD64, ARM64]
        await fetched(facade, BIG.layer.descriptor.digest)

        async def grown() -> bool:
            return len((await top()).manifests) == 3

        await until(grown)
        image, same, soci = (await top()).manifests
        assert same == plain.manifests[1]
        assert (image.platform, soci.platform, soci.artifact_type) == (AMD64, AMD64, ARTIFACT)
        assert soci.annotations == {"com.amazon.soci.image-manifest-digest": image.digest}
        manifest = Manifest.parse(await fetched(facade, image.digest, "manifests"))
        assert manifest.annotations[INDEX_DIGEST] == soci.digest
        assert len(await fetched(facade, soci.digest, "manifests")) == soci.size


@pytest.mark.parametrize("soci", [True, False])
async def test_index_that_the_base_names_is_not_taken_for_one_of_the_composed_image(
    shop: Shop,
    soci: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    await push_image(shop.layout, "v1", [TINY])
    data, _ = image_documents([TINY])
    annotations = {INDEX_DIGEST: Digest.of(b"elsewhere")}
    await put(shop, dataclasses.replace(Manifest.parse(data), annotations=annotations), "v1")
    shop.write()
    async with shop.facade(soci=soci) as facade:
        assert not (await latest(facade)).index


async def test_combination_stays_the_bytes_of_the_builder(shop: Shop) -> None:
    base = await push_image(shop.layout, "v1", [BIG])
    await push_image(shop.layout, None, [TINY])
    data, _ = image_documents([TINY])
    annotations = {"org.opencontainers.image.base.digest": base.digest}
    await put(shop, dataclasses.replace(Manifest.parse(data), annotations=annotations), "chunk")
    shop.write(env={}, chunks=["images/app:chunk"])
    shop.write("edited", chunks=["images/app:chunk"])
    async with shop.facade() as facade:
        combined = await pulled_whole(facade)
        await until_counted(facade, "indexed")
        assert (await latest(facade, "edited")).index
        assert (await latest(facade)).digest == combined.digest


# ----- what is left alone -----


async def test_zstd_and_small_layers_are_skipped_and_the_rest_is_indexed(shop: Shop) -> None:
    packed = as_layer(zstandard.compress(uncompressed(OTHER)), media_types.OCI_LAYER_ZSTD)
    plain = as_layer(uncompressed(OTHER), media_types.OCI_LAYER)
    await shop.hold(TINY, packed, plain, BIG)
    async with shop.facade() as facade:
        await pulled_whole(facade)
        assert list(await ztocs_of(facade, await indexed(facade))) == [BIG.layer.descriptor.digest]
        assert await facade.metric("facade_soci_layers_total") == 1


async def test_image_of_small_layers_names_no_index(shop: Shop) -> None:
    await shop.hold(TINY)
    async with shop.facade() as facade:
        await pulled_whole(facade)
        shop.write("other")
        assert not (await latest(facade, "other")).index
        assert await facade.metric("facade_soci_layers_total") == 0


def unlike_a_tar() -> bytes:
    return gzip.compress(NOISE, 1)


DAMAGED: dict[str, bytes] = {
    "truncated": OTHER.blob[:-100],
    "flipped": OTHER.blob[: 6 * MIB] + b"????" + OTHER.blob[6 * MIB + 4 :],
    "followed by something": OTHER.blob + b"something",
    "no tar": unlike_a_tar(),
}


@pytest.mark.parametrize("damage", DAMAGED)
async def test_damaged_layer_is_served_as_it_is_and_does_not_keep_the_others_from_being_indexed(
    shop: Shop, damage: str
) -> None:
    await shop.hold(as_layer(DAMAGED[damage]), BIG)
    async with shop.facade() as facade:
        await pulled_whole(facade)
        assert list(await ztocs_of(facade, await indexed(facade))) == [BIG.layer.descriptor.digest]
        assert await facade.metric("facade_soci_layers_total", outcome="refused") == 1
    async with shop.facade() as facade:  # the verdict is remembered
        assert (await latest(facade)).index
        assert await facade.metric("facade_soci_layers_total") == 0


# ----- what is lost -----


async def test_evicted_ztoc_is_made_again_for_whoever_asks_even_when_its_layer_went_too(shop: Shop) -> None:
    await shop.hold(BIG)
    layer = BIG.layer.descriptor.digest
    async with shop.facade() as facade:
        await pulled_whole(facade)
        (ztoc,) = (await ztocs_of(facade, await indexed(facade))).values()
        data = await fetched(facade, ztoc)
        for gone in ([ztoc], [ztoc, layer]):
            for digest in gone:
                async with facade.session.delete(f"/facade/v1/blobs/{digest}") as response:
                    assert response.status == 204
            assert await fetched(facade, ztoc) == data


async def test_evicted_index_is_made_again(shop: Shop) -> None:
    await shop.hold(BIG)
    async with shop.facade() as facade:
        await pulled_whole(facade)
        image = await indexed(facade)
    for digest in (image.index, image.digest):
        (shop.root / "cache" / "blobs" / "sha256" / digest.removeprefix("sha256:")).unlink()
    async with shop.facade() as facade:
        for digest in (image.index, image.digest):
            assert Digest.of(await fetched(facade, digest, "manifests")) == digest


# ----- who may -----


async def test_index_and_ztocs_are_for_those_who_may_pull_the_image(shop: Shop) -> None:
    await shop.hold(BIG)
    tokens = shop.root / "tokens.json"
    mine, theirs = "mine-0123456789abcdef", "theirs-0123456789abcdef"
    tokens.write_text(
        json.dumps(
            {mine: {"name": "a", "pull": ["workspaces/ws"]}, theirs: {"name": "b", "pull": ["workspaces/x"]}}
        )
    )
    async with shop.facade() as facade:
        await pulled_whole(facade)
        image = await indexed(facade)
        (ztoc,) = (await ztocs_of(facade, image)).values()
    access = {"access": AccessSettings(mode="tokens", tokens_file=tokens), "admin_token": Secret("operator")}
    async with shop.facade(**access) as facade:
        for token, expected in ((mine, 200), (theirs, 404)):
            for path in (f"manifests/{image.index}", f"blobs/{ztoc}"):
                shown = {"Authorization": f"Bearer {token}"}
                assert (await facade.get(f"/v2/workspaces/ws/{path}", **shown))[0] == expected
        stray = await facade.get(f"/v2/workspaces/x/blobs/{ztoc}", Authorization=f"Bearer {theirs}")
        assert stray[0] == 404


@pytest.mark.parametrize("missing", ["flatbuffers", "indexed_gzip"])
async def test_setting_without_its_extra_says_what_to_install(
    shop: Shop, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    await shop.hold(TINY)
    with pytest.raises(SettingsInvalid, match=r"facade\.soci: .*lapstrake\[soci\]"):
        async with shop.facade():
            pass
