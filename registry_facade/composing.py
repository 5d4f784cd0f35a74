"""Composed images: from an image spec to manifest, config and index, the same bytes on every node.

1. The spec is read, its references are resolved to digests (`Manifests`), its files become layers.
2. Per platform of the base, `ocikit.compose.compose` joins base and additions; an index stays an index.
3. Config and manifests are stored like any other blob, with what they refer to; digests that were issued
   stay pullable when the spec changes.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence

import structlog

from ocikit import media_types
from ocikit.combine import Chunk, combine
from ocikit.compose import Addition, ComposedImage, Layer, compose, paired_layers, strip_base
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidManifest, ManifestNotFound, NotBuiltFromBase, OciError
from ocikit.image_config import ImageConfig
from ocikit.manifest import Index, Manifest, RawManifest, parse_manifest_or_index
from ocikit.ranges import ByteRange
from ocikit.repository import Image, as_image, choose_platform, complete_image
from registry_facade.addressing import COMPOSED, Target
from registry_facade.cache.memory import MemoryCache
from registry_facade.env_edits import EnvEdit, apply_env, edits_asked_by
from registry_facade.errors import ImageSpecInvalid
from registry_facade.image_spec import ImageLayers, ImageRef, ImageSpec, LayerSpec
from registry_facade.layers.content_layers import ContentLayers
from registry_facade.locating import Locator
from registry_facade.manifests import FoundManifest, Manifests
from registry_facade.soci.index import ARTIFACT_TYPE, entry, naming, unnamed, with_entries
from registry_facade.soci.indexes import SociIndexes
from registry_facade.sources.read_through import ReadThrough
from registry_facade.specs.base import ImageSpecProvider
from servicekit.single_flight import SingleFlight

_log = structlog.get_logger(__name__)
PARTS_ANNOTATION = "io.lapstrake.composed.parts"
BASE_DIGEST_ANNOTATION = "org.opencontainers.image.base.digest"
BASE_NAME_ANNOTATION = "org.opencontainers.image.base.name"
_SKIP_LABEL = "io.lapstrake.skip-layers"
_GITPOD_SKIP_LABEL = "skip-n.registry-facade.gitpod.io"
_LATEST = "latest"
_MAX_DEPTH = 4
FRESH_S = 1.0
"""A composition is looked at again this long after the last look: specs and tags may have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """An addition of the spec for one platform, and what its annotation says."""

    addition: Addition
    title: str
    edits: tuple[EnvEdit, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Composition:
    """``index`` where the base was one: its manifests are ``images``, in this order."""

    images: tuple[ComposedImage, ...]
    index: Index | None = None
    soci: tuple[RawManifest, ...] = ()

    @property
    def top(self) -> RawManifest:
        if self.index is not None:
            return RawManifest.of(media_types.OCI_INDEX, self.index.dump())
        return RawManifest.of(media_types.OCI_MANIFEST, self.images[0].manifest)


class Composer:
    """Safe for concurrent use on one event loop."""

    def __init__(
        self,
        provider: ImageSpecProvider,
        manifests: Manifests,
        cache: ReadThrough,
        locator: Locator,
        layers: ContentLayers,
        soci: SociIndexes | None = None,
    ) -> None:
        self._provider = provider
        self._manifests = manifests
        self._cache = cache
        self._locator = locator
        self._layers = layers
        self._soci = soci
        self._recent: MemoryCache[str, tuple[float, RawManifest]] = MemoryCache(10_000)
        self._flights: SingleFlight[str, RawManifest] = SingleFlight()
        self._images: MemoryCache[tuple[Target, Digest], Image] = MemoryCache(4_000)

    def _at_hand(self, image_id: str) -> RawManifest | None:
        """The current manifest if it was looked at just now."""
        found = self._recent.get(image_id)
        return found[1] if found is not None and time.monotonic() - found[0] <= FRESH_S else None

    async def manifest(self, image_id: str, reference: str | Digest) -> FoundManifest:
        """Any tag means the image as the spec has it now; a digest must have been issued for it.

        While the spec, or what it names, cannot be asked for, a tag means what it meant last.
        """
        if not isinstance(reference, Digest):
            return await self._current_or_last(image_id)
        issued = await self._issued(image_id, reference)
        if issued is None:
            current = await self.current(image_id)
            issued = current if current.digest == reference else await self._issued(image_id, reference)
        if issued is None:
            raise ManifestNotFound(f"{COMPOSED}/{image_id}@{reference}")
        return FoundManifest(issued)

    async def _current_or_last(self, image_id: str) -> FoundManifest:
        try:
            return FoundManifest(await self.current(image_id))
        except OciError as error:
            target = Target(COMPOSED, image_id)
            last = await self._manifests.known_tag(target, _LATEST) if error.retryable else None
            held = await self._manifests.from_cache(target, last.digest) if last is not None else None
            if held is None:
                raise
            self._manifests.count_stale(target, _LATEST, str(error))
            return FoundManifest(held, stale=True)

    async def _issued(self, image_id: str, digest: Digest) -> RawManifest | None:
        return await self._manifests.issued(Target(COMPOSED, image_id), digest)

    async def current(self, image_id: str) -> RawManifest:
        if (found := self._at_hand(image_id)) is not None:
            return found
        return await self._flights.do(image_id, lambda: self._compose(image_id))

    async def prepare(self, image_id: str, digest: Digest | None = None) -> None:
        """Makes the blobs of the current image be here or be findable, ``digest`` above all."""
        if digest is not None and self._soci is not None:
            target = Target(COMPOSED, image_id)
            if await self._soci.remake(digest, lambda layer: self._fetch(target, layer)):
                return
        self._recent.drop(image_id)
        await self.current(image_id)

    async def _fetch(self, target: Target, layer: Digest) -> None:
        async with self._cache.open(layer, lambda: self._locator.locate(target, layer)) as blob:
            async for _ in blob.parts(ByteRange().resolve(blob.size)):
                pass  # a span of a file costs nothing
        await self._cache.settled(layer)

    async def referrers(self, image_id: str, digest: Digest) -> Index:
        """The base's: what was signed or described there is still part of this."""
        spec = await self._provider.spec(image_id)
        del digest
        base = await self._manifests.get(spec.base.target, spec.base.reference)
        return await self._manifests.referrers(spec.base.target, base.raw.digest)

    # ----- one composition -----

    async def _compose(self, image_id: str) -> RawManifest:
        spec = await self._provider.spec(image_id)
        composition = await self._composition(image_id, spec)
        target = Target(COMPOSED, image_id)
        await self._keep(target, composition)
        if self._soci is not None and not spec.is_combination:
            indexed = await self._indexed(composition, self._soci)
            if indexed is not composition:
                await self._keep(target, composition := indexed)
        await self._manifests.point(target, _LATEST, composition.top.digest)
        self._recent.put(image_id, (time.monotonic(), composition.top), 1)
        return composition.top

    async def _keep(self, target: Target, composition: _Composition) -> None:
        """From then on it is issued, and all of it can be pulled."""
        for raw in composition.soci:
            await self._manifests.remember(target, raw, "composed")
        for image in composition.images:
            await self._cache.storage.put(image.config_descriptor.digest, image.config, "composed")
            raw = RawManifest.of(media_types.OCI_MANIFEST, image.manifest)
            await self._manifests.remember(target, raw, "composed")
        if composition.index is not None:
            await self._manifests.remember(target, composition.top, "composed")

    async def _indexed(self, composition: _Composition, soci: SociIndexes) -> _Composition:
        """The composition naming the SOCI indexes of those of its images that have one now."""
        images, indexes, entries = [], [], []
        for image in composition.images:
            found = await soci.index_of(image.layers)
            images.append(image if found is None else naming(image, found))
            if found is not None:
                indexes.append(found)
                entries.append(entry(images[-1], found))
        if not indexes:
            return composition
        top = composition.index
        listed = with_entries(top, images, entries) if top is not None else None
        return _Composition(tuple(images), listed, tuple(indexes))

    async def _composition(self, image_id: str, spec: ImageSpec) -> _Composition:
        found = (await self._manifests.get(spec.base.target, spec.base.reference)).raw
        document = parse_manifest_or_index(found)
        annotations = {BASE_NAME_ANNOTATION: spec.base.text, BASE_DIGEST_ANNOTATION: str(found.digest)}
        if isinstance(document, Manifest):
            base = await self._image(spec.base, found)
            return _Composition((await self._for_platform(spec, base, annotations),))
        return await self._index(image_id, spec, document, annotations)

    async def _index(
        self, image_id: str, spec: ImageSpec, index: Index, annotations: Mapping[str, str]
    ) -> _Composition:
        """Each platform of the base that all additions have; attestations stay behind."""
        images: list[ComposedImage] = []
        entries: list[Descriptor] = []
        for listed in index.manifests:
            if (
                listed.platform is None
                or listed.platform.os == "unknown"
                or listed.artifact_type == ARTIFACT_TYPE
                or not media_types.is_manifest(listed.media_type)
            ):
                continue
            raw = (await self._manifests.get(spec.base.target, listed.digest)).raw
            base = await self._image(spec.base, raw)
            try:
                image = await self._for_platform(spec, base, annotations)
            except ManifestNotFound as error:
                _log.info(
                    "platform_left_out", image_id=image_id, platform=str(listed.platform), reason=str(error)
                )
                continue
            images.append(image)
            entries.append(dataclasses.replace(image.manifest_descriptor, platform=listed.platform))
        if not images:
            raise ImageSpecInvalid(image_id, ["no platform of the base is offered by all that is added"])
        made = Index(tuple(entries), annotations={**index.annotations, **annotations})
        return _Composition(tuple(images), made)

    async def _for_platform(
        self, spec: ImageSpec, base: Image, annotations: Mapping[str, str]
    ) -> ComposedImage:
        if spec.chunks:
            combined = await self._combined(spec, base)
            if spec.is_combination:
                return combined
            base = as_image(combined)
        base = dataclasses.replace(base, manifest=unnamed(base.manifest))
        parts = [await self._part(spec, base, layer) for layer in spec.layers]
        env_edits = [*(edit for part in parts for edit in part.edits), *spec.env]

        def edit(config: ImageConfig) -> ImageConfig:
            return _edited(config, spec, env_edits)

        described = {PARTS_ANNOTATION: json.dumps([part.title for part in parts])}
        return compose(
            base.manifest,
            base.config,
            [part.addition for part in parts],
            [edit],
            {**annotations, **described},
        )

    async def _combined(self, spec: ImageSpec, base: Image) -> ComposedImage:
        """Base and chunks, the bytes that the builder makes of them."""
        chunks: list[Chunk] = []
        for ref in spec.chunks:
            raw = (await self._manifests.get(ref.target, ref.reference)).raw
            chunks.append(Chunk(ref.text, await self._image(ref, raw, base.config.platform)))
        base_name = chunks[0].base_name or str(spec.base.reference)
        return combine(base, base_name, chunks, spec.chunk_env).image

    async def _part(self, spec: ImageSpec, base: Image, layer: LayerSpec) -> _Part:
        if not isinstance(layer, ImageLayers):
            made = await self._layers.layer(layer)
            history = {"created_by": "lapstrake: content layer"}
            return _Part(Addition((made,), (history,)), f"content@{made.descriptor.digest}")
        raw = (await self._manifests.get(layer.image.target, layer.image.reference)).raw
        image = await self._image(layer.image, raw, base.config.platform)
        edits = edits_asked_by(image.config.env, gitpod_compatible=spec.gitpod_compatible)
        return _Part(
            _added_layers(image, base, layer, gitpod_compatible=spec.gitpod_compatible),
            f"{layer.image.text}@{image.raw.digest}"
            if not isinstance(layer.image.reference, Digest)
            else layer.image.text,
            tuple(edits),
        )

    async def _image(
        self, ref: ImageRef, raw: RawManifest, platform: Platform | None = None, depth: int = 0
    ) -> Image:
        """The image of one platform, with its config. Raises ManifestNotFound when it is not offered."""
        held = self._images.get((ref.target, raw.digest)) if platform is None else None
        if held is not None:
            return held
        document = parse_manifest_or_index(raw)
        if isinstance(document, Index):
            if depth >= _MAX_DEPTH:
                raise InvalidManifest(f"indexes lie {depth} deep in each other", ref.text)
            chosen = choose_platform(document, platform, ref.text)
            raw = (await self._manifests.get(ref.target, chosen.digest)).raw
            return await self._image(ref, raw, platform, depth + 1)
        source = self._cache.view(lambda digest: self._locator.locate(ref.target, digest))
        image = await complete_image(source, raw, document)
        if platform is not None and not image.config.platform.satisfies(platform):
            raise ManifestNotFound(f"{ref.text} for {platform}")
        self._images.put((ref.target, image.raw.digest), image, 1)
        return image


def _added_layers(image: Image, base: Image, layer: ImageLayers, *, gitpod_compatible: bool) -> Addition:
    """What an image brings: all above the base if it was built on it, else all its layers."""
    try:
        return strip_base(image.manifest, image.config, base.config, (layer.image.text, "the base"))
    except NotBuiltFromBase:
        pass
    labels = image.config.execution.get("Labels") or {}
    stated = labels.get(_SKIP_LABEL) or (labels.get(_GITPOD_SKIP_LABEL) if gitpod_compatible else None)
    skip = layer.skip_layers
    if not skip and stated is not None:
        if not str(stated).isdigit():
            raise ImageSpecInvalid(
                layer.image.text, [f"its label to skip layers is {stated!r}, not a number"]
            )
        skip = int(stated)
    layers: Sequence[Layer] = paired_layers(image.manifest, image.config)[skip:]
    history = image.config.history if skip == 0 else ()
    return Addition(tuple(layers), tuple(history), image.config.created)


def _edited(config: ImageConfig, spec: ImageSpec, env_edits: Sequence[EnvEdit]) -> ImageConfig:
    changed = config.with_env(apply_env(config.env, env_edits)) if env_edits else config
    changes = dict(spec.execution)
    if spec.labels:
        changes["Labels"] = {**(config.execution.get("Labels") or {}), **spec.labels}
    return changed.with_execution(changes) if changes else changed
