"""base + chunks -> one image, by manifest and config only; pure.

The builder stores what this gives; the facade gives it on request, byte for byte.

The merge rule: what a chunk says is what differs from its base. Environment by the project's actions; labels,
volumes and exposed ports united, of a label that several set the last counts; USER, WORKDIR, STOPSIGNAL,
HEALTHCHECK and SHELL from the last chunk that changed them; ENTRYPOINT and CMD likewise, as a pair.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ocikit.compose import Addition, ComposedImage, compose, paired_layers
from ocikit.env_merge import EnvAction, merge_env
from ocikit.errors import NotBuiltFromBase
from ocikit.image_config import ImageConfig
from ocikit.repository import Image

BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"
INPUTS = "dev.lapstrake.inputs"
"""The field of a chunk's config with the inputs of its hash; images that people run do not have it."""
UNITED = ("Labels", "Volumes", "ExposedPorts")
LAST_CHANGE = (
    ("User",),
    ("WorkingDir",),
    ("StopSignal",),
    ("Healthcheck",),
    ("Shell",),
    ("Entrypoint", "Cmd"),
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """An image of a chunk's own layers. Its config's execution part still holds what the base gave it."""

    name: str
    image: Image

    @property
    def base_digest(self) -> str:
        return self.image.manifest.annotations.get(BASE_DIGEST, "")

    @property
    def base_name(self) -> str:
        return self.image.manifest.annotations.get(BASE_NAME, "")

    @property
    def addition(self) -> Addition:
        config = self.image.config
        return Addition(tuple(paired_layers(self.image.manifest, config)), config.history, config.created)


def without_inputs(config: ImageConfig) -> ImageConfig:
    """For images that people run: how they were made is in their annotations."""
    extra = {key: value for key, value in config.extra.items() if key != INPUTS}
    return dataclasses.replace(config, extra=extra)


_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Combined:
    """``notes`` are lines for people: what several chunks set, and who won."""

    image: ComposedImage
    notes: tuple[str, ...]


def combine(
    base: Image,
    base_name: str,
    chunks: Sequence[Chunk],
    actions: Mapping[str, EnvAction],
    on_top: Sequence[Addition] = (),
    annotations: Mapping[str, str] = _NONE,
) -> Combined:
    """Stacks ``chunks`` on ``base`` in the order given, then ``on_top``.

    Raises NotBuiltFromBase for a chunk of another base, InvalidManifest for too many layers.
    """
    for chunk in chunks:
        if chunk.base_digest != base.descriptor.digest:
            other = f"its base is {chunk.base_digest or 'unknown'}, not {base.descriptor.digest}"
            raise NotBuiltFromBase(f"chunk {chunk.name}", base_name, other)
    execution, notes = merge_execution(base.config, chunks)
    env = merge_env(base.config.env, [chunk.image.config.env for chunk in chunks], actions)

    def edit(config: ImageConfig) -> ImageConfig:
        edited = without_inputs(config).with_execution(execution)
        return edited.with_env(env) if env else edited

    said = {BASE_NAME: base_name, BASE_DIGEST: str(base.descriptor.digest), **annotations}
    additions = [*(chunk.addition for chunk in chunks), *on_top]
    return Combined(compose(base.manifest, base.config, additions, [edit], said), tuple(notes))


def merge_execution(base: ImageConfig, chunks: Sequence[Chunk]) -> tuple[Mapping[str, Any], Sequence[str]]:
    """The fields of the inner config that differ from the base's, without Env; and who overruled whom."""
    changes: dict[str, Any] = {}
    notes: list[str] = []
    for field in UNITED:
        united = dict(base.execution.get(field) or {})
        for chunk in chunks:
            own = chunk.image.config.execution.get(field) or {}
            inherited = base.execution.get(field) or {}
            united |= {key: value for key, value in own.items() if inherited.get(key, _ABSENT) != value}
        if united:
            changes[field] = united
    for fields in LAST_CHANGE:
        setters = [chunk for chunk in chunks if _values(chunk.image.config, fields) != _values(base, fields)]
        if setters:
            changes |= dict(zip(fields, _values(setters[-1].image.config, fields), strict=True))
        if len({repr(_values(chunk.image.config, fields)) for chunk in setters}) > 1:
            names = ", ".join(chunk.name for chunk in setters)
            notes.append(f"{'/'.join(fields)} is set by {names}; the last counts")
    return changes, notes


_ABSENT = object()


def _values(config: ImageConfig, fields: Sequence[str]) -> Sequence[Any]:
    return tuple(config.execution.get(field) or None for field in fields)
