"""Building one Dockerfile: the protocol that engines speak.

An engine turns a context into an image on disk and knows nothing of chunks, hashes or repositories.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ocikit.descriptor import Platform
from ocikit.image_config import ImageConfig

LogLine = Callable[[str], None]
"""Called with each line of the build's log as it appears, on the event loop."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """``base`` is an OCI layout and a tag in it, handed to the Dockerfile as the argument ``base``; the
    directory's own name must be usable in an image name.

    ``ignore`` are lines of .dockerignore, ``contexts`` directories by name, ``secrets`` files by id.
    ``output`` is an empty directory that belongs to this build.
    """

    name: str
    platform: Platform
    context: Path
    dockerfile: Path
    output: Path
    args: Mapping[str, str]
    base: tuple[Path, str] | None
    ignore: Sequence[str]
    contexts: Mapping[str, Path]
    secrets: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """``layers`` are tars, uncompressed, bottom first: as many as the config has diff_ids."""

    config: ImageConfig
    layers: tuple[Path, ...]


class BuildEngine(Protocol):
    """Safe for concurrent use."""

    @property
    def name(self) -> str: ...

    async def build(self, request: BuildRequest, on_log: LogLine) -> BuiltImage:
        """Raises BuildFailed with the end of the log; a cancelled build leaves no process behind."""

    async def close(self) -> None:
        """Gives back what the engine holds; images that were built stay where they are."""
