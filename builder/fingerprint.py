"""The hash of what matters to a chunk's bytes, and the inputs it is made of.

In: the platform, the base's own hash, the Dockerfile's text, the variant's arguments, and of every file that
the build can reach its path, kind, mode, content or link target. Out: the names of registry and repository,
tests, the other variants of a chunk, what .dockerignore leaves out. The inputs are kept beside the chunk, so
that a later plan can say which of them changed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.build_context import context_entries, named_context_entries
from builder.project import Chunk, NamedContext, Project
from ocikit.descriptor import Platform
from ocikit.manifest import canonical_json

_FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Inputs:
    """``base`` is the input hash of the base, empty for the base itself; ``sources`` maps path to content.

    ``given_hash`` takes the place of the native hash where tags follow another tool's; it is not stored.
    """

    platform: str
    base: str
    dockerfile: str
    args: Mapping[str, str]
    sources: Mapping[str, str]
    given_hash: str = ""

    def dump(self) -> Mapping[str, object]:
        return {
            "format_version": _FORMAT_VERSION,
            "platform": self.platform,
            "base": self.base,
            "dockerfile": self.dockerfile,
            "args": dict(self.args),
            "sources": dict(self.sources),
        }

    @classmethod
    def parse(cls, raw: object) -> "Inputs | None":
        """None for what another version of this program wrote."""
        if not isinstance(raw, Mapping) or raw.get("format_version") != _FORMAT_VERSION:
            return None
        platform, base, dockerfile = (str(raw.get(name)) for name in ("platform", "base", "dockerfile"))
        return cls(platform, base, dockerfile, dict(raw["args"]), dict(raw["sources"]))

    @property
    def hash(self) -> str:
        """64 hexadecimal digits."""
        return self.given_hash or hashlib.sha256(canonical_json(self.dump())).hexdigest()


def read_inputs(chunk: Chunk, platform: Platform, base_hash: str, contexts: Sequence[NamedContext]) -> Inputs:
    """Reads every file the build of ``chunk`` can reach; blocking. Raises ProjectInvalid."""
    text = (chunk.directory / chunk.dockerfile).read_bytes()
    sources = {f"/{entry.path}": entry.describe() for entry in context_entries(chunk)}
    for context in used_contexts(text, contexts):
        for entry in named_context_entries(context):
            sources[f"{context.name}:/{entry.path}"] = entry.describe()
    return Inputs(str(platform), base_hash, hashlib.sha256(text).hexdigest(), chunk.args, sources)


def used_contexts(dockerfile: bytes, contexts: Sequence[NamedContext]) -> Sequence[NamedContext]:
    """Those that the Dockerfile names; the others cannot reach its image."""
    return [context for context in contexts if context.name.encode() in dockerfile]


def project_inputs(project: Project, platform: Platform) -> Mapping[str, Inputs]:
    """The inputs of the base (under ``base``) and of every chunk, for ``platform``; blocking."""
    contexts = project.options.contexts
    base = read_inputs(project.base, platform, "", contexts)
    chunks = {
        name: read_inputs(chunk, platform, base.hash, contexts) for name, chunk in project.chunks.items()
    }
    return {**chunks, project.base.name: base}


def differences(now: Inputs, before: Inputs) -> Sequence[str]:
    """What changed, most telling first; empty when nothing did."""
    found: list[str] = []
    if now.platform != before.platform:
        found.append(f"not built for {now.platform}")
    if now.base != before.base:
        found.append("base changed")
    if now.dockerfile != before.dockerfile:
        found.append("Dockerfile changed")
    found += [f"source {change}" for change in _changes(now.sources, before.sources)]
    found += [f"argument {change}" for change in _changes(now.args, before.args)]
    return found


def _changes(now: Mapping[str, str], before: Mapping[str, str]) -> Sequence[str]:
    return [
        f"{name} {'added' if name not in before else 'removed' if name not in now else 'changed'}"
        for name in sorted({*now, *before})
        if now.get(name) != before.get(name)
    ]
