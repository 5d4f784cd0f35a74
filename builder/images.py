"""Combinations into images: composed, tested on what will ship, and only then named."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from builder.attestations import (
    RESULTS_MEDIA_TYPE,
    SPDX_MEDIA_TYPE,
    push_referrer,
    results_document,
    spdx_document,
)
from builder.chunk_images import StoredChunk
from builder.chunk_store import ChunkStore
from builder.chunk_tests import TestCase, TestResult, TestRunner, cases_of, describe_failure
from builder.combine import Combined, combine
from builder.conflicts import find_conflicts, merged_files
from builder.contents_store import ContentsStore
from builder.errors import ChunkMissing, FilesConflict, TestsFailed
from builder.fingerprint import Inputs
from builder.merged_layer import MERGED, publish_files
from builder.names import base_tag, chunked_tag
from builder.parallel import each
from builder.plan import layer_order
from builder.project import ChunkTest, Project
from ocikit.compose import Addition, ComposedImage
from ocikit.distribution.repository import RegistryRepository
from ocikit.errors import InvalidReference, ManifestNotFound
from ocikit.image_config import ImageConfig
from ocikit.manifest import Manifest, RawManifest
from ocikit.repository import Image, push_config_and_manifest
from servicekit.threads import in_thread


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to make: its tag, and its chunks in the order they are stacked."""

    name: str
    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MadeImage:
    """``is_new`` is False when the repository had exactly this image under this name before."""

    wanted: Wanted
    image: Image
    results: Sequence[TestResult]
    is_new: bool

    @property
    def size_bytes(self) -> int:
        return sum(layer.size for layer in self.image.manifest.layers)


def wanted_images(project: Project, names: Sequence[str]) -> Sequence[Wanted]:
    """The named combinations with their chunks in the project's order. Raises UnknownName."""
    combinations = {name: item.chunks for name, item in project.combinations.items()}
    return [
        Wanted(
            project.combination(name).name,
            tuple(layer_order(project.options.order, combinations, chosen=name)),
        )
        for name in names
    ]


def complete_names(project: Project) -> Sequence[str]:
    """Every combination that none of the ignored chunks is missing from."""
    return [name for name, item in project.combinations.items() if project.is_complete(item)]


class ImageMaker:
    """Joins chunks that ``store`` has. ``runner`` None leaves the tests out."""

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
    ) -> None:
        self._project = project
        self._inputs = inputs
        self._store = store
        self._runner = runner
        self._contents = contents
        self._say = say
        self._jobs = jobs

    @property
    def _base_name(self) -> str:
        return base_tag(self._inputs[self._project.base.name].hash)

    async def load(self, names: Sequence[str]) -> tuple[Image, Mapping[str, StoredChunk]]:
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
        return image, {name: chunk for name, chunk in chunks.items() if chunk is not None}

    async def test_chunks(
        self, base: Image, chunks: Mapping[str, StoredChunk], *, with_base: bool = True
    ) -> Sequence[TestResult]:
        """Each chunk's tests on base + chunk, and the base's on the base. Raises TestsFailed."""
        if self._runner is None:
            return ()
        results: list[TestResult] = []
        if with_base and self._project.base.tests:
            cases = cases_of("base", {"base": self._project.base.tests})
            results += await self._runner.run(base, self._store.target, cases)
        tested = [name for name in chunks if self._project.chunk(name).tests]

        async def test(name: str) -> Sequence[TestResult]:
            image = as_image(combine(base, self._base_name, [chunks[name]], self._project.env_actions).image)
            return await self._run(image, cases_of(name, {name: self._project.chunk(name).tests}))

        results += [result for part in await each(tested, test, jobs=self._jobs) for result in part]
        _raise_failures(results)
        return results

    async def passes(self, chunk: StoredChunk, base: Image) -> bool:
        """The gate of a rebase: whether the chunk's tests pass on ``base``; True without any."""
        tests = self._project.chunk(chunk.name).tests
        image = as_image(combine(base, self._base_name, [chunk], self._project.env_actions).image)
        results = await self._run(image, cases_of(chunk.name, {chunk.name: tests}))
        return not any(result.failure for result in results)

    async def make(
        self, wanted: Sequence[Wanted], base: Image, chunks: Mapping[str, StoredChunk]
    ) -> Sequence[MadeImage]:
        """Composes, tests and names each image.

        Raises FilesConflict before anything is named, TestsFailed when all others are.
        """
        tops = await each(wanted, lambda image: self._top(image, base, chunks), jobs=self._jobs)
        on_top = {image.name: top for image, top in zip(wanted, tops, strict=True)}

        async def one(image: Wanted) -> MadeImage:
            stack = [chunks[name] for name in image.chunks]
            actions = self._project.env_actions
            combined = combine(base, self._base_name, stack, actions, on_top[image.name])
            for note in combined.notes:
                self._say(f"{image.name}: {note}")
            return await self._make(image, combined)

        made = await each(wanted, one, jobs=max(self._jobs, 4))
        _raise_failures([result for image in made for result in image.results])
        return made

    async def attest(self, made: Sequence[MadeImage], base: Image, chunks: Mapping[str, StoredChunk]) -> None:
        """Pushes an SPDX document and the test results of each image as its referrers."""
        repository = self._store.target
        if not isinstance(repository, RegistryRepository):
            raise InvalidReference(repository.title, "referrers are pushed to registries only")
        for item in made:
            layers = [("base", await self._contents.of(base, self._base_name))]
            layers += [
                (name, await self._contents.of(chunks[name].image, self._tag(name)))
                for name in item.wanted.chunks
            ]
            subject = item.image.descriptor
            spdx = spdx_document(item.wanted.name, subject, layers)
            await in_thread(push_referrer, repository, subject, spdx, SPDX_MEDIA_TYPE)
            results = results_document(item.results)
            await in_thread(push_referrer, repository, subject, results, RESULTS_MEDIA_TYPE)

    async def _top(self, image: Wanted, base: Image, chunks: Mapping[str, StoredChunk]) -> Sequence[Addition]:
        """A layer of the files that had to be merged, if any. Raises FilesConflict."""
        below = await self._contents.of(base, self._base_name)
        stack = [
            (name, await self._contents.of(chunks[name].image, self._tag(name))) for name in image.chunks
        ]
        allowed = self._project.options.allowed_conflicts
        conflicts = await asyncio.to_thread(find_conflicts, stack, allowed)
        if conflicts:
            raise FilesConflict(image.name, [str(conflict) for conflict in conflicts])
        files = await asyncio.to_thread(merged_files, below, stack)
        if not files:
            return ()
        self._say(f"{image.name}: merged {', '.join(f'/{path}' for path in files)}")
        layer = await publish_files(
            self._store.target, files, [below, *(contents for _, contents in stack)], MERGED
        )
        return [Addition((layer,), ({"created_by": "lapstrake: files merged from several chunks"},))]

    def _tag(self, name: str) -> str:
        return chunked_tag(name, self._inputs[name].hash)

    async def _make(self, wanted: Wanted, combined: Combined) -> MadeImage:
        image = as_image(combined.image)
        tests: dict[str, Sequence[ChunkTest]] = {
            name: self._project.chunk(name).tests for name in wanted.chunks
        }
        results = await self._run(image, cases_of(wanted.name, tests))
        is_new = not any(result.failure for result in results) and await self._put(
            wanted.name, combined.image
        )
        return MadeImage(wanted, image, results, is_new)

    async def _run(self, image: Image, cases: Sequence[TestCase]) -> Sequence[TestResult]:
        return await self._runner.run(image, self._store.target, cases) if self._runner is not None else ()

    async def _put(self, tag: str, composed: ComposedImage) -> bool:
        try:
            if (await self._store.target.resolve(tag)).digest == composed.manifest_descriptor.digest:
                return False
        except ManifestNotFound:
            pass
        await push_config_and_manifest(self._store.target, composed.config, composed.manifest, tag)
        return True


def as_image(composed: ComposedImage) -> Image:
    """A composed image in the form that stored ones have."""
    return Image(
        RawManifest.of(composed.manifest_descriptor.media_type, composed.manifest),
        Manifest.parse(composed.manifest),
        ImageConfig.parse(composed.config),
    )


def _raise_failures(results: Sequence[TestResult]) -> None:
    if failures := [describe_failure(result) for result in results if result.failure]:
        raise TestsFailed(failures)
