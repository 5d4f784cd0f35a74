"""Moving what was built on one base onto another, by manifest and config only; pure.

The layers stay as they are, so this is right only as far as they do not depend on what changed below them:
the tests of what is moved are the gate, and nobody should leave them out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ocikit.combine import BASE_DIGEST, BASE_NAME, LAST_CHANGE, UNITED, without_inputs
from ocikit.compose import ComposedImage, compose, strip_base
from ocikit.env_merge import EnvAction, merge_values
from ocikit.image_config import ImageConfig
from ocikit.repository import Image


def rebase_image(image: Image, old_base: Image, new_base: Image, names: tuple[str, str]) -> ComposedImage:
    """``image``, which begins with ``old_base``'s layers, on ``new_base``.

    ``names`` are the image's and the new base's. Raises NotBuiltFromBase and InvalidManifest.
    """
    addition = strip_base(image.manifest, image.config, old_base.config, (names[0], "its recorded base"))
    rebased = rebased_config(image.config, old_base.config, new_base.config)
    inherited = old_base.manifest.annotations.items()
    annotations = {
        **dict(item for item in image.manifest.annotations.items() if item not in inherited),
        BASE_NAME: names[1],
        BASE_DIGEST: str(new_base.descriptor.digest),
    }

    def edit(config: ImageConfig) -> ImageConfig:
        return without_inputs(dataclasses.replace(config, execution=rebased.execution))

    return compose(new_base.manifest, new_base.config, [addition], [edit], annotations)


def rebased_config(config: ImageConfig, old_base: ImageConfig, new_base: ImageConfig) -> ImageConfig:
    """What ``config`` says beyond its old base, said beyond the new one."""
    execution: dict[str, Any] = dict(new_base.execution)
    for field in UNITED:
        before, own = (one.execution.get(field) or {} for one in (old_base, config))
        added = {key: value for key, value in own.items() if before.get(key, _ABSENT) != value}
        united = {**(execution.get(field) or {}), **added}
        if united:
            execution[field] = united
    for fields in LAST_CHANGE:
        if any(config.execution.get(field) != old_base.execution.get(field) for field in fields):
            execution |= {field: config.execution.get(field) for field in fields}
    kept = {key: value for key, value in execution.items() if value is not None}
    moved = dataclasses.replace(config, execution=kept)
    env = rebased_env(config.env, old_base.env, new_base.env)
    return moved.with_env(env) if env else moved


def rebased_env(
    env: Mapping[str, str], old_base: Mapping[str, str], new_base: Mapping[str, str]
) -> Mapping[str, str]:
    """The new base's, changed as ``env`` changed the old one's; lists that both changed are merged."""
    moved = dict(new_base)
    for name, value in env.items():
        if old_base.get(name) == value:
            continue
        both = name in new_base and new_base[name] != old_base.get(name) and ":" in value
        moved[name] = merge_values(EnvAction.MERGE_UNIQUE, new_base[name], value) if both else value
    return moved


_ABSENT = object()
