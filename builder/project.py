"""A project of chunks: what its files say, checked, as values.

The format is dazzle's: ``dazzle.yaml``, ``base/``, ``chunks/<name>/`` with an optional ``chunk.yaml`` of
variants, ``tests/<name>.yaml``. Our own options stand under the key ``lapstrake`` of dazzle.yaml, which
dazzle ignores. `builder.project_files` reads them.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from builder.assertions import Assertion
from builder.errors import UnknownName
from ocikit.descriptor import Platform
from ocikit.env_merge import EnvAction


class Order(enum.StrEnum):
    """In which order the chunks of a combination are stacked."""

    AS_WRITTEN = "as-written"
    ALPHABETICAL = "alphabetical"
    POPULARITY = "popularity"


class Compression(enum.StrEnum):
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class ChunkTest:
    """One command to run in an image and what must hold afterwards.

    ``entrypoint`` None means the image's own; one that is given also makes stdin a terminal.
    """

    description: str
    command: tuple[str, ...]
    assertions: tuple[Assertion, ...]
    entrypoint: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    skip: bool = False


@dataclass(frozen=True, slots=True)
class NamedContext:
    """Files from outside the project that a Dockerfile reaches by ``COPY --from=<name>``.

    ``include`` are glob patterns under ``directory``; nothing else of it is seen or hashed.
    """

    name: str
    directory: Path
    include: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A build unit: a chunk directory, or one variant of it. The base is one too, named ``base``."""

    name: str
    directory: Path
    dockerfile: str = "Dockerfile"
    args: Mapping[str, str] = field(default_factory=dict)
    tests: tuple[ChunkTest, ...] = ()
    control_files: tuple[str, ...] = ()
    """Files of the directory that describe the build and are no part of it: chunk.yaml, all Dockerfiles."""

    @property
    def directory_name(self) -> str:
        return self.name.partition(":")[0]

    @property
    def variant(self) -> str:
        return self.name.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Combination:
    """``chunks`` in the order they are written, those of referenced combinations before its own."""

    name: str
    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """What the key ``lapstrake`` of dazzle.yaml holds."""

    order: Order = Order.AS_WRITTEN
    compression: Compression = Compression.GZIP
    contexts: tuple[NamedContext, ...] = ()
    allowed_conflicts: tuple[str, ...] = ()
    platforms: tuple[Platform, ...] = ()
    """Empty: the host's."""


@dataclass(frozen=True, slots=True)
class Project:
    """Chunks and combinations by name. ``warnings`` are lines for people, with file and line."""

    root: Path
    base: Chunk
    chunks: Mapping[str, Chunk]
    combinations: Mapping[str, Combination]
    env_actions: Mapping[str, EnvAction]
    ignored: frozenset[str] = frozenset()
    options: Options = Options()
    warnings: tuple[str, ...] = ()

    def chunk(self, name: str) -> Chunk:
        """Raises UnknownName."""
        if name not in self.chunks:
            raise UnknownName("chunk", name, sorted(self.chunks))
        return self.chunks[name]

    def units(self, names: Iterable[str]) -> frozenset[str]:
        """Names of chunks, or ``base``. Raises UnknownName."""
        return frozenset(name if name == self.base.name else self.chunk(name).name for name in names)

    def combination(self, name: str) -> Combination:
        """Raises UnknownName."""
        if name not in self.combinations:
            raise UnknownName("combination", name, sorted(self.combinations))
        return self.combinations[name]

    def is_complete(self, combination: Combination) -> bool:
        """Whether none of its chunks is ignored."""
        return not self.ignored.intersection(combination.chunks)
