"""Building a project's chunks into a repository: what the plan says, several at a time.

Everything that is finished is in the repository under a name made of its inputs, so a run that was killed
is resumed by running it again; what was not finished has no name and is trusted by nobody.
"""

import asyncio
import contextlib
import dataclasses
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builder.build_context import ignore_lines, stage_named_context
from builder.chunk_images import (
    BUILT_ON,
    StoredChunk,
    chunk_documents,
    layer_annotations,
)
from builder.chunk_store import ChunkStore, Found, stage_as_layout
from builder.contents import ContentsCache
from builder.contents_store import ContentsStore
from builder.engine import BuildEngine, BuildRequest, BuiltImage
from builder.errors import BuildFailed
from builder.fingerprint import Inputs, used_contexts
from builder.layer_publish import LayerRecords, publish_layer
from builder.names import base_tag, chunked_tag
from builder.parallel import each
from builder.plan import Action, PlannedAction, Published, plan_chunk
from builder.project import Chunk, Project
from builder.rebase import rebased_config
from builder.redaction import redacted_failure, redactor
from builder.state import StateDirectory
from ocikit import media_types
from ocikit.combine import BASE_DIGEST, BASE_NAME
from ocikit.compose import paired_layers, strip_base
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import InvalidInput, NotFound
from ocikit.image_config import ImageConfig
from ocikit.layout import LayoutRepository
from ocikit.manifest import Manifest, RawManifest
from ocikit.repository import Image, load_image
from servicekit.threads import in_thread

_CONTENT_HASH = re.compile(r"\b(file|dir|multi):[0-9a-f]{64}\b")
_STAGED_TAG = "base"


Gate = Callable[[StoredChunk, Image], Awaitable[bool]]
"""Whether a chunk passes its tests on a base."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """``force`` are names of chunks (or ``base``) to build although they are there."""

    jobs: int
    source_date_epoch: int
    force: frozenset[str] = frozenset()
    secrets: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    gate: "Gate | None" = None
    """Asked before a chunk of which only the base differs is moved onto the new base; None always builds."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """What people see on the way: ``say`` a line, ``log`` a line of the build of a chunk."""

    say: Callable[[str], None]
    log: Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one planned action; ``size_bytes`` are the compressed bytes of its own layers."""

    planned: PlannedAction
    image: Image
    duration_s: float

    @property
    def size_bytes(self) -> int:
        return sum(layer.size for layer in self.image.manifest.layers)


class ProjectBuilder:
    """One project into one repository. The engine and the state directory are their owner's."""

    def __init__(
        self,
        project: Project,
        inputs: Mapping[str, Inputs],
        store: ChunkStore,
        engine: BuildEngine,
        state: StateDirectory,
        options: BuildOptions,
        reporter: Reporter,
    ) -> None:
        self._project = project
        self._inputs = inputs
        self._store = store
        self._engine = engine
        self._state = state
        self._options = options
        self._reporter = reporter
        self._records = LayerRecords(state.layer_records)
        self._contents = ContentsStore(store.target, ContentsCache(state.contents))

    async def base(self) -> Done:
        """The base image, built when it is not there."""
        base, inputs = self._project.base, self._inputs[self._project.base.name]
        planned, found = await plan_base(self._store, inputs, forced=base.name in self._options.force)
        started_s = time.monotonic()
        tag = base_tag(inputs.hash)
        if found is not None and planned.action is not Action.BUILD:
            return Done(planned, await self._store.take(found, tag), time.monotonic() - started_s)
        self._reporter.say(f"building base: {planned.reason}")
        image = await self._build(base, inputs, None, tag)
        return Done(planned, image, time.monotonic() - started_s)

    async def chunks(self, names: Sequence[str], base: Image) -> Sequence[Done]:
        """The named chunks, built, taken or found; raises the first failure when the others are done."""
        if names:
            await stage_as_layout(base, self._store.target, self._staged(base), _STAGED_TAG)
        return await each(names, lambda name: self._chunk(name, base), jobs=self._options.jobs)

    def _staged(self, base: Image) -> LayoutRepository:
        return LayoutRepository(self._state.bases / f"base-{base.descriptor.digest.short}", create=True)

    async def _chunk(self, name: str, base: Image) -> Done:
        inputs, started_s = self._inputs[name], time.monotonic()
        planned, found = await plan_one(
            self._store, name, inputs, str(base.descriptor.digest), forced=name in self._options.force
        )
        tag = chunked_tag(name, inputs.hash)
        if found is not None and planned.action is not Action.BUILD:
            image = await self._store.take(found, tag)
        elif (moved := await self._rebased(name, inputs, base, tag)) is not None:
            image = moved
            planned = PlannedAction(name, Action.REBASE, planned.reason)
        else:
            self._reporter.say(f"building {name}: {planned.reason}")
            image = await self._build(self._project.chunk(name), inputs, base, tag)
        done = Done(planned, image, time.monotonic() - started_s)
        if planned.action is Action.BUILD:
            self._reporter.say(f"built {name} in {done.duration_s:.1f} s")
        return done

    async def _rebased(self, name: str, inputs: Inputs, base: Image, tag: str) -> Image | None:
        """An earlier build on another base, moved onto ``base`` if its tests pass there."""
        if self._options.gate is None or name in self._options.force:
            return None
        earlier = await self._store.same_but_base(name, inputs)
        if earlier is None:
            return None
        chunk = StoredChunk(name, earlier.image)
        try:
            old_base = await load_image(earlier.repository, Digest.parse(chunk.base_digest))
        except (NotFound, InvalidInput):
            return None
        config = rebased_config(earlier.image.config, old_base.config, base.config)
        below = base_tag(self._inputs[self._project.base.name].hash)
        layers = [
            dataclasses.replace(
                layer,
                descriptor=layer.descriptor.with_annotations(
                    layer_annotations(self._project.chunk(name), inputs)
                ),
            )
            for layer in paired_layers(earlier.image.manifest, earlier.image.config)
        ]
        annotations = {
            BASE_NAME: below,
            BASE_DIGEST: str(base.descriptor.digest),
            BUILT_ON: "@".join(chunk.built_on),
        }
        config_bytes, manifest = chunk_documents(config, layers, inputs, annotations)
        image = Image(
            RawManifest.of(media_types.OCI_MANIFEST, manifest),
            Manifest.parse(manifest),
            ImageConfig.parse(config_bytes),
        )
        if not await self._options.gate(StoredChunk(name, image), base):
            self._reporter.say(f"{name} fails its tests on the new base: building it")
            return None
        await self._store.put(config_bytes, manifest, tag)
        await self._contents.publish(image, tag)
        return image

    async def _build(self, chunk: Chunk, inputs: Inputs, base: Image | None, tag: str) -> Image:
        async with _in_threads(self._state.runs.directory()) as directory:
            request = await self._request(chunk, inputs, base, directory)
            built = await self._run_engine(request)
            if not built.config.platform.satisfies(request.platform):
                other = f"the image is for {built.config.platform}, not for {request.platform}"
                raise BuildFailed(chunk.name, other)
            config, manifest = await self._publish(chunk, inputs, base, built)
            await self._store.put(config, manifest, tag)
        image = await load_image(self._store.target, tag)
        await self._contents.publish(image, tag)
        return image

    async def _run_engine(self, request: BuildRequest) -> BuiltImage:
        redact = await asyncio.to_thread(redactor, request.secrets.values())
        try:
            return await self._engine.build(
                request, lambda line: self._reporter.log(request.name, redact(line))
            )
        except BuildFailed as error:
            raise redacted_failure(error, redact) from None

    async def _request(
        self, chunk: Chunk, inputs: Inputs, base: Image | None, directory: Path
    ) -> BuildRequest:
        output, dockerfile = directory / "output", chunk.directory / chunk.dockerfile
        await asyncio.to_thread(output.mkdir)
        contexts: dict[str, Path] = {}
        text = await asyncio.to_thread(dockerfile.read_bytes)
        for context in used_contexts(text, self._project.options.contexts):
            contexts[context.name] = directory / "contexts" / context.name
            await asyncio.to_thread(stage_named_context, context, contexts[context.name])
        staged = None if base is None else (self._staged(base).directory.absolute(), _STAGED_TAG)
        return BuildRequest(
            name=chunk.name,
            platform=self._store.platform,
            context=chunk.directory,
            dockerfile=dockerfile,
            output=output,
            args=inputs.args,
            base=staged,
            ignore=await asyncio.to_thread(ignore_lines, chunk),
            contexts=contexts,
            secrets=self._options.secrets,
        )

    async def _publish(
        self, chunk: Chunk, inputs: Inputs, base: Image | None, built: BuiltImage
    ) -> tuple[bytes, bytes]:
        """Stores the layers above ``base`` and gives the config and manifest that name them."""
        config = reproducible_config(built.config, self._options.source_date_epoch)
        annotations: Mapping[str, str] = {}
        tars = built.layers
        if base is not None:
            below = base_tag(self._inputs[self._project.base.name].hash)
            addition = strip_base(_raw_manifest(built), config, base.config, (f"chunk {chunk.name}", below))
            tars = built.layers[len(built.layers) - len(addition.layers) :]
            config = dataclasses.replace(config, history=addition.history)
            annotations = {BASE_NAME: below, BASE_DIGEST: str(base.descriptor.digest)}
        layers = [
            await publish_layer(
                tar,
                self._store.target,
                self._records,
                self._contents.cache,
                compression=self._project.options.compression,
                clamp_s=self._options.source_date_epoch,
                annotations=layer_annotations(chunk, inputs),
            )
            for tar in tars
        ]
        kept = [layer for layer in layers if layer is not None]
        return chunk_documents(config, kept, inputs, annotations)


async def plan_base(
    store: ChunkStore, inputs: Inputs, *, forced: bool = False
) -> tuple[PlannedAction, Found | None]:
    found = await store.base(inputs)
    earlier = [] if found is not None else await store.earlier_inputs("base", is_base=True)
    published = Published("", found.repository is not store.target) if found is not None else None
    planned = plan_chunk("base", inputs, base_digest="", published=published, earlier=earlier, forced=forced)
    return planned, found


async def plan_one(
    store: ChunkStore, name: str, inputs: Inputs, base_digest: str | None, *, forced: bool = False
) -> tuple[PlannedAction, Found | None]:
    found = await store.chunk(name, inputs, base_digest or "")
    published = None
    if found is not None:
        stored = StoredChunk(name, found.image)
        published = Published(stored.base_digest, found.repository is not store.target)
    earlier = [] if found is not None else await store.earlier_inputs(name)
    planned = plan_chunk(
        name, inputs, base_digest=base_digest, published=published, earlier=earlier, forced=forced
    )
    return planned, found


async def plan_project(
    project: Project, inputs: Mapping[str, Inputs], store: ChunkStore, *, force: frozenset[str] = frozenset()
) -> Sequence[PlannedAction]:
    """What a build of everything would do now; reads the repository, changes nothing."""
    base, found = await plan_base(store, inputs[project.base.name], forced=project.base.name in force)
    digest = None if base.action is Action.BUILD or found is None else str(found.image.descriptor.digest)
    planned = await each(
        list(project.chunks),
        lambda name: plan_one(store, name, inputs[name], digest, forced=name in force),
        jobs=8,
    )
    return [base, *(action for action, _ in planned)]


@contextlib.asynccontextmanager
async def _in_threads(manager: contextlib.AbstractContextManager[Path]) -> AsyncIterator[Path]:
    """``manager`` entered and left in threads, for files are removed on the way."""
    stack = contextlib.ExitStack()
    try:
        yield await in_thread(stack.enter_context, manager)
    finally:
        await in_thread(stack.close)


def reproducible_config(config: ImageConfig, epoch_s: int) -> ImageConfig:
    """Without what differs from run to run: times, and hashes and paths that engines note in the history."""
    created = datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = tuple(_reproducible_entry(entry, created) for entry in config.history)
    return dataclasses.replace(config, created=created, history=history)


def _reproducible_entry(entry: Mapping[str, Any], created: str) -> Mapping[str, Any]:
    kept = {key: value for key, value in entry.items() if key in {"created_by", "empty_layer", "author"}}
    if "created_by" in kept:
        kept["created_by"] = _CONTENT_HASH.sub(r"\1", str(kept["created_by"]))
    return {**kept, "created": created}


def _raw_manifest(built: BuiltImage) -> Manifest:
    """What the engine made, in the terms `strip_base` speaks; these layers are stored nowhere as they are."""
    config = Descriptor(media_types.OCI_CONFIG, Digest.of(b""), 0)
    layers = tuple(Descriptor(media_types.OCI_LAYER, diff_id, 0) for diff_id in built.config.diff_ids)
    return Manifest(config, layers)
