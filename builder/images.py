"""Combinations into images of one platform: composed, and tested on what will ship."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from builder.attestations import (
    RESULTS_MEDIA_TYPE,
    SPDX_MEDIA_TYPE,
    ensure_listed,
    push_referrer,
    results_document,
    spdx_document,
)
from builder.chunk_images import ORDER, StoredChunk, chunk_of
from builder.chunk_store import ChunkStore
from builder.chunk_tests import TestCase, TestResult, TestRunner, cases_of, describe_failure
from builder.cids import LayerCids
from builder.conflicts import (
    SharedFile,
    find_conflicts,
    identity_conflicts,
    merged_files,
    on_another_base,
    shared_files,
)
from builder.contents import Contents
from builder.contents_store import ContentsStore
from builder.errors import ChunkMissing, FilesConflict, TestsFailed
from builder.fingerprint import Inputs
from builder.merged_layer import MERGED, publish_files
from builder.names import base_tag, chunked_tag
from builder.parallel import each
from builder.plan import layer_order, pinned_order
from builder.project import Order, Project
from builder.test_scope import TestScope
from ocikit.combine import combine
from ocikit.compose import Addition, ComposedImage
from ocikit.digest import Digest
from ocikit.distribution.repository import RegistryRepository
from ocikit.errors import InvalidInput, InvalidManifest, InvalidReference, ManifestNotFound
from ocikit.repository import Image, as_image, load_image
from servicekit.threads import in_thread


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to make: its tag, and its chunks in the order they are stacked.

    ``ordered_by`` is the rule of that order where it is to be remembered, else empty.
    """

    name: str
    chunks: tuple[str, ...]
    ordered_by: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """What images are made of, as the repository has it."""

    base: Image
    chunks: Mapping[str, StoredChunk]


@dataclass(frozen=True, slots=True)
class TriedImage:
    """Composed and tested; nothing of it is stored but a layer of merged files."""

    wanted: Wanted
    composed: ComposedImage
    results: Sequence[TestResult]

    @property
    def has_failed(self) -> bool:
        return any(result.failure for result in self.results)

    @property
    def size_bytes(self) -> int:
        return sum(layer.size for layer in self.composed.layers)


def wanted_images(project: Project, names: Sequence[str]) -> Sequence[Wanted]:
    """The named combinations with their chunks in the project's order. Raises UnknownName."""
    combinations = {name: item.chunks for name, item in project.combinations.items()}
    order = project.options.order
    remembered = str(order) if order is Order.POPULARITY else ""
    return [
        Wanted(
            project.combination(name).name,
            tuple(layer_order(order, combinations, chosen=name)),
            remembered,
        )
        for name in names
    ]


async def as_published(wanted: Sequence[Wanted], store: ChunkStore) -> Sequence[Wanted]:
    """``wanted`` with the order that an image which is out was given by the same rule.

    Popularity changes with every new combination; an image's order must not change with it.
    """

    async def pinned(image: Wanted) -> Wanted:
        if not image.ordered_by:
            return image
        try:
            published = await load_image(store.target, image.name, store.platform)
        except (ManifestNotFound, InvalidInput):
            return image
        if published.manifest.annotations.get(ORDER) != image.ordered_by:
            return image
        order = [chunk_of(layer) for layer in published.manifest.layers]
        return Wanted(image.name, tuple(pinned_order(image.chunks, order)), image.ordered_by)

    return await each(wanted, pinned, jobs=8)


def complete_names(project: Project) -> Sequence[str]:
    """Every combination that none of the ignored chunks is missing from."""
    return [name for name, item in project.combinations.items() if project.is_complete(item)]


class ImageMaker:
    """Joins chunks that ``store`` has, for its platform. ``runner`` None leaves the tests out.

    ``everywhere`` runs a chunk's tests on every image it is in, also where nothing they depend on differs.
    ``cids`` writes the IPFS name of each layer into the manifest; None leaves that out.
    """

    def __init__(
        self,
        project: Project,
        inputs: Mapping[str, Inputs],
        store: ChunkStore,
        runner: TestRunner | None,
        contents: ContentsStore,
        say: Callable[[str], None],
        *,
        jobs: int,
        everywhere: bool = False,
        cids: LayerCids | None = None,
    ) -> None:
        self._project = project
        self._inputs = inputs
        self._store = store
        self._runner = runner
        self._contents = contents
        self._say = say
        self._jobs = jobs
        self._everywhere = everywhere
        self._cids = cids

    @property
    def _base_name(self) -> str:
        return base_tag(self._inputs[self._project.base.name].hash)

    async def load(self, names: Sequence[str]) -> Parts:
        """The base and the named chunks, brought here if they are elsewhere. Raises ChunkMissing."""
        base = await self._store.base(self._inputs[self._project.base.name])
        if base is None:
            raise ChunkMissing(["base"], self._store.target.title)
        image = await self._store.take(base, self._base_name)

        async def find(name: str) -> StoredChunk | None:
            inputs = self._inputs[self._project.chunk(name).name]
            found = await self._store.chunk(name, inputs, str(image.descriptor.digest))
            if found is None:
                return None
            return StoredChunk(name, await self._store.take(found, self._tag(name)))

        chunks = dict(zip(names, await each(names, find, jobs=8), strict=True))
        if missing := [name for name, chunk in chunks.items() if chunk is None]:
            raise ChunkMissing(missing, self._store.target.title)
        return Parts(image, {name: chunk for name, chunk in chunks.items() if chunk is not None})

    async def test_chunks(self, parts: Parts) -> Sequence[TestResult]:
        """Each chunk's tests on base + chunk, and the base's on the base. Raises TestsFailed."""
        if self._runner is None:
            return ()
        results: list[TestResult] = []
        if self._project.base.tests:
            cases = cases_of("base", {"base": self._project.base.tests})
            results += await self._run(parts.base, cases)
        tested = [name for name in parts.chunks if self._project.chunk(name).tests]

        async def test(name: str) -> Sequence[TestResult]:
            image = await self._alone(parts.chunks[name], parts.base)
            return await self._run(image, cases_of(name, {name: self._project.chunk(name).tests}))

        results += [result for part in await each(tested, test, jobs=self._jobs) for result in part]
        raise_failures(results)
        return results

    async def passes(self, chunk: StoredChunk, base: Image) -> bool:
        """The gate of a rebase: whether the chunk's tests pass on ``base``; True without any."""
        tests = self._project.chunk(chunk.name).tests
        results = await self._run(await self._alone(chunk, base), cases_of(chunk.name, {chunk.name: tests}))
        return all(result.is_passed or result.case.test.skip for result in results)

    async def _alone(self, chunk: StoredChunk, base: Image) -> Image:
        """Base + chunk, as an image; of a moved chunk with its merged files."""
        on_top: Sequence[Addition] = ()
        if chunk.is_moved:
            tables = await self._tables([chunk.name], Parts(base, {chunk.name: chunk}))
            on_top = await self._top(Wanted(chunk.name, (chunk.name,)), tables)
        actions = self._project.env_actions
        return as_image(combine(base, self._base_name, [chunk], actions, on_top).image)

    async def make(self, wanted: Sequence[Wanted], parts: Parts) -> Sequence[TriedImage]:
        """Composes and tests each image. Raises FilesConflict and InvalidManifest before any is tested."""
        tables = await self._tables(sorted({name for image in wanted for name in image.chunks}), parts)
        tops = await each(wanted, lambda image: self._top(image, tables), jobs=self._jobs)
        on_top = {image.name: top for image, top in zip(wanted, tops, strict=True)}

        composed = [await self._compose(image, parts, on_top[image.name]) for image in wanted]

        async def test(made: tuple[Wanted, ComposedImage]) -> TriedImage:
            return TriedImage(*made, await self._test_image(*made, parts, tables))

        return await each(list(zip(wanted, composed, strict=True)), test, jobs=max(self._jobs, 4))

    async def _compose(self, image: Wanted, parts: Parts, on_top: Sequence[Addition]) -> ComposedImage:
        stack = [parts.chunks[name] for name in image.chunks]
        said = {ORDER: image.ordered_by} if image.ordered_by else {}
        try:
            combined = combine(parts.base, self._base_name, stack, self._project.env_actions, on_top, said)
        except InvalidManifest as error:
            raise InvalidManifest(error.reason, f"image {image.name}") from error
        for note in combined.notes:
            self._say(f"{image.name}: {note}")
        return combined.image if self._cids is None else await self._cids.annotated(combined.image)

    async def shared_files(
        self, wanted: Sequence[Wanted], parts: Parts
    ) -> Mapping[str, Sequence[SharedFile]]:
        """The conflict matrix of each image, from tables of contents alone."""
        tables = await self._tables(sorted({name for image in wanted for name in image.chunks}), parts)
        allowed = self._project.options.allowed_conflicts

        async def matrix(image: Wanted) -> Sequence[SharedFile]:
            return await in_thread(shared_files, tables.base, tables.stack(image.chunks), allowed)

        found = await each(wanted, matrix, jobs=self._jobs)
        return {image.name: files for image, files in zip(wanted, found, strict=True)}

    async def _tables(self, names: Sequence[str], parts: Parts) -> "_Tables":
        base = await self._contents.of(parts.base, self._base_name)
        contents = await each(
            names, lambda name: self._contents.of(parts.chunks[name].image, self._tag(name)), jobs=8
        )
        stored = dict(zip(names, contents, strict=True))

        async def meant(name: str) -> Contents:
            return await self._on_base(parts.chunks[name], stored[name], base)

        return _Tables(
            base, stored, dict(zip(names, await each(names, meant, jobs=8), strict=True)), TestScope(base)
        )

    async def _on_base(self, chunk: StoredChunk, stored: Contents, base: Contents) -> Contents:
        """What a chunk means for ``base``; as it is stored where its own base is gone."""
        if not chunk.is_moved or not stored.merged:
            return stored
        tag, digest = chunk.built_on
        try:
            old_base = await load_image(self._store.target, Digest.parse(digest))
        except (ManifestNotFound, InvalidInput):
            return stored
        return await in_thread(on_another_base, stored, await self._contents.of(old_base, tag), base)

    async def _test_image(
        self, wanted: Wanted, composed: ComposedImage, parts: Parts, tables: "_Tables"
    ) -> Sequence[TestResult]:
        """The tests of every chunk: on the image itself, or on base + chunk where that tells the same."""
        if self._runner is None:
            return ()
        image, results = as_image(composed), list[TestResult]()
        for name in wanted.chunks:
            cases = cases_of(wanted.name, {name: self._project.chunk(name).tests})
            if not cases:
                continue
            alone = await self._alone(parts.chunks[name], parts.base)
            others = [tables.chunks[other] for other in wanted.chunks if other != name]
            if not self._everywhere and await in_thread(
                tables.scope.is_undisturbed, tables.chunks[name], others, alone.config, image.config
            ):
                found = await self._runner.run(alone, self._store.target, cases)
                results += [result for result in found if not result.failure]
                cases = [result.case for result in found if result.failure]  # they may need another chunk
            results += await self._runner.run(image, self._store.target, cases)
        self._runner.results += results
        return results

    async def attest(self, made: Sequence[TriedImage], parts: Parts) -> None:
        """Pushes an SPDX document and the test results of each image as its referrers."""
        repository = self._store.target
        if not isinstance(repository, RegistryRepository):
            raise InvalidReference(repository.title, "referrers are pushed to registries only")
        for item in made:
            tables = await self._tables(item.wanted.chunks, parts)
            layers = [("base", tables.base), *tables.meant.items()]
            subject = item.composed.manifest_descriptor
            documents = {
                SPDX_MEDIA_TYPE: spdx_document(item.wanted.name, subject, layers),
                RESULTS_MEDIA_TYPE: results_document(item.results),
            }
            for media_type, document in documents.items():
                tag = await in_thread(push_referrer, repository, subject, document, media_type)
                await ensure_listed(repository, subject.digest, await repository.manifest(tag))

    async def _top(self, image: Wanted, tables: "_Tables") -> Sequence[Addition]:
        """A layer of the files that had to be merged, if any. Raises FilesConflict."""
        stack = tables.stack(image.chunks)
        allowed = self._project.options.allowed_conflicts
        conflicts = [
            *await asyncio.to_thread(find_conflicts, stack, allowed),
            *identity_conflicts(tables.base, stack, allowed),
        ]
        if conflicts:
            raise FilesConflict(image.name, [str(conflict) for conflict in conflicts])
        files = await asyncio.to_thread(merged_files, tables.base, stack, tables.chunks)
        if not files:
            return ()
        self._say(f"{image.name}: merged {', '.join(f'/{path}' for path in files)}")
        below = [tables.base, *(contents for _, contents in stack)]
        layer = await publish_files(self._store.target, files, below, MERGED)
        return [Addition((layer,), ({"created_by": "lapstrake: files merged from several chunks"},))]

    def _tag(self, name: str) -> str:
        return chunked_tag(name, self._inputs[name].hash)

    async def _run(self, image: Image, cases: Sequence[TestCase]) -> Sequence[TestResult]:
        if self._runner is None:
            return ()
        results = await self._runner.run(image, self._store.target, cases)
        self._runner.results += results
        return results


@dataclass(frozen=True, slots=True)
class _Tables:
    """Tables of contents; ``scope`` remembers what it finds in them.

    ``chunks`` are as stored, ``meant`` as if they had been built on this base.
    """

    base: Contents
    chunks: Mapping[str, Contents]
    meant: Mapping[str, Contents]
    scope: TestScope = field(compare=False)

    def stack(self, names: Sequence[str]) -> Sequence[tuple[str, Contents]]:
        return [(name, self.meant[name]) for name in names]


def raise_failures(results: Sequence[TestResult]) -> None:
    """Raises TestsFailed when there are any."""
    if failures := [describe_failure(result) for result in results if result.failure]:
        raise TestsFailed(failures)
