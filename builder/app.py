"""The composition root of the builder: from names and settings to objects that work together."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.build import BuildOptions, ProjectBuilder, Reporter
from builder.chunk_store import ChunkStore
from builder.chunk_tests import PassedTests, TestRunner
from builder.cids import LayerCids
from builder.contents import ContentsCache
from builder.contents_store import ContentsStore
from builder.dazzle_hash import with_dazzle_hashes
from builder.engine import BuildEngine, BuildRequest, BuiltImage, LogLine
from builder.engines import buildah, buildkit
from builder.errors import ProjectInvalid
from builder.fingerprint import Inputs, project_inputs
from builder.images import ImageMaker
from builder.names import base_tag
from builder.platforms import host_platform
from builder.project import Project
from builder.project_files import load_project
from builder.sandbox import Sandbox
from builder.settings import BuilderSettings
from builder.state import StateDirectory
from builder.unpack import UnpackedLayers
from ocikit.descriptor import Platform
from ocikit.opening import repositories
from ocikit.reference import RepositoryName
from ocikit.repository import Image, Repository

NATIVE, DAZZLE = "native", "dazzle"
"""Whose hashes tags are made of."""


@dataclass(frozen=True, slots=True)
class Workbench:
    """A loaded project, for one platform, and the repository it goes to; hands out the workers over them."""

    project: Project
    inputs: Mapping[str, Inputs]
    store: ChunkStore
    state: StateDirectory
    settings: BuilderSettings
    reporter: Reporter
    hash_compat: str = NATIVE

    @property
    def platform(self) -> Platform:
        return self.store.platform

    async def on_base(self, base: Image | None = None) -> "Workbench":
        """With the chunks' hashes as they are on ``base``, or on the base that the repository has.

        Only dazzle's hash depends on it: it knows the base's full name and digest.
        """
        if self.hash_compat == NATIVE:
            return self
        inputs = await asyncio.to_thread(with_dazzle_hashes, self.project, self.inputs, None)
        bench = dataclasses.replace(self, inputs=inputs)
        if base is None and (found := await self.store.base(inputs[self.project.base.name])) is not None:
            base = found.image
        if base is None:
            return bench
        tag = base_tag(inputs[self.project.base.name].hash)
        reference = f"{self.store.target.title}:{tag}@{base.descriptor.digest}"
        named = await asyncio.to_thread(with_dazzle_hashes, self.project, inputs, reference)
        return dataclasses.replace(self, inputs=named)

    def builder(self, engine: BuildEngine, options: BuildOptions) -> ProjectBuilder:
        return ProjectBuilder(
            self.project, self.inputs, self.store, engine, self.state, options, self.reporter
        )

    def test_runner(self) -> TestRunner:
        return TestRunner(
            Sandbox(UnpackedLayers(self.state.unpacked)),
            PassedTests(self.state.test_results),
            jobs=self.settings.jobs,
            timeout_s=self.settings.test_timeout,
        )

    def image_maker(self, runner: TestRunner | None, *, everywhere: bool = False) -> ImageMaker:
        """``runner`` None leaves the tests out; ``everywhere`` repeats them on each image."""
        contents = ContentsStore(self.store.target, ContentsCache(self.state.contents))
        return ImageMaker(
            self.project,
            self.inputs,
            self.store,
            runner,
            contents,
            self.reporter.say,
            jobs=self.settings.jobs,
            everywhere=everywhere,
            cids=LayerCids(self.state.cids, self.store.target) if self.settings.annotate_cid else None,
        )


@contextlib.asynccontextmanager
async def workbenches(
    root: Path,
    to: RepositoryName,
    settings: BuilderSettings,
    reporter: Reporter,
    *,
    platforms: Sequence[Platform] = (),
    reuse_from: RepositoryName | None = None,
    hash_compat: str = NATIVE,
) -> AsyncIterator[Sequence[Workbench]]:
    """One for each platform, for as long as the block lasts. Raises ProjectInvalid and WorkspaceError.

    Without ``platforms`` those of the project count, and without any there the host's.
    """
    project = await asyncio.to_thread(load_project, root)
    for warning in project.warnings:
        reporter.say(f"warning: {warning}")
    chosen = chosen_platforms(project, platforms)
    if hash_compat == DAZZLE and len(chosen) > 1:
        raise ProjectInvalid(["dazzle's hashes know no platform: build one platform at a time with them"])
    inputs = [await asyncio.to_thread(project_inputs, project, platform) for platform in chosen]
    state = StateDirectory(settings.state_dir)
    await asyncio.to_thread(state.prepare)
    async with repositories() as opener:
        elsewhere: Repository | None = opener.open(reuse_from) if reuse_from is not None else None
        target = opener.open(to, create=True)
        benches = [
            Workbench(
                project, own, ChunkStore(target, platform, elsewhere), state, settings, reporter, hash_compat
            )
            for platform, own in zip(chosen, inputs, strict=True)
        ]
        yield [await bench.on_base() for bench in benches]


def chosen_platforms(project: Project, asked: Sequence[Platform] = ()) -> Sequence[Platform]:
    """In their order, each once: those that were asked for, else the project's, else the host's."""
    found = asked or project.options.platforms or (host_platform(),)
    return [platform for _, platform in sorted({str(one): one for one in found}.items())]


class LazyEngine:
    """Starts the engine it stands for at the first build: who finds everything built needs none."""

    def __init__(self, name: str, state: StateDirectory) -> None:
        self.name = name
        self._state = state
        self._starting = asyncio.Lock()
        self._engine: BuildEngine | None = None

    async def build(self, request: BuildRequest, on_log: LogLine) -> BuiltImage:
        async with self._starting:
            if self._engine is None:
                self._engine = await _start(self.name, self._state)
        return await self._engine.build(request, on_log)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()


async def _start(name: str, state: StateDirectory) -> BuildEngine:
    """``auto`` is buildah where it is installed, else a BuildKit that answers."""
    if name == "buildkit" or (name == "auto" and not buildah.is_available()):
        return await buildkit.BuildkitEngine.start()
    return await buildah.BuildahEngine.start(state.engines / "buildah")


def _conforms(engine: LazyEngine) -> BuildEngine:
    return engine
