"""The image configuration (image-spec v1.1, config.md): what runs, and on which stack of diff_ids.

Unknown fields are kept wherever they stand, so that a composed image loses nothing of its base
(Docker's ``Healthcheck``, ``Shell``, ``OnBuild`` among them).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ocikit.descriptor import Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidConfig
from ocikit.manifest import canonical_json


@dataclasses.dataclass(frozen=True, slots=True)
class ImageConfig:
    """``execution`` is the inner ``config`` object (Env, User, Cmd ...) in the spec's own spelling."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    history: tuple[Mapping[str, Any], ...] = ()
    execution: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    created: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, subject: str = "image config") -> "ImageConfig":
        """Raises InvalidConfig or InvalidDigest."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidConfig(f"not JSON: {error}", subject) from error
        if not isinstance(raw, dict):
            raise InvalidConfig("must be an object", subject)
        rootfs = raw.get("rootfs")
        if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids") or [], list):
            raise InvalidConfig("needs rootfs.diff_ids", subject)
        execution = raw.get("config") or {}
        history = raw.get("history") or []
        if not isinstance(execution, dict) or not isinstance(history, list):
            raise InvalidConfig("config must be an object and history a list", subject)
        if not all(isinstance(entry, dict) for entry in history):
            raise InvalidConfig("history entries must be objects", subject)
        env = execution.get("Env") or []
        if not isinstance(env, list) or not all(isinstance(entry, str) for entry in env):
            raise InvalidConfig("config.Env must be a list of strings", subject)
        return cls(
            Platform(
                str(raw.get("os") or ""), str(raw.get("architecture") or ""), str(raw.get("variant") or "")
            ),
            tuple(Digest.parse(str(diff_id)) for diff_id in rootfs.get("diff_ids") or []),
            tuple(history),
            execution,
            str(raw.get("created") or ""),
            {key: value for key, value in raw.items() if key not in _KNOWN},
        )

    def dump(self) -> bytes:
        """Canonical bytes."""
        document: dict[str, Any] = {
            **self.extra,
            **self.platform.dump(),
            "config": dict(self.execution),
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in self.diff_ids]},
            "history": [dict(entry) for entry in self.history],
        }
        if self.created:
            document["created"] = self.created
        return canonical_json(document)

    @property
    def env(self) -> Mapping[str, str]:
        """Environment in order; of a repeated name the last counts, as for a container runtime."""
        pairs = (entry.partition("=") for entry in self.execution.get("Env") or [])
        return {name: value for name, _, value in pairs}

    def with_env(self, env: Mapping[str, str]) -> "ImageConfig":
        """A copy whose environment is ``env``, in its order."""
        return self.with_execution({"Env": [f"{name}={value}" for name, value in env.items()]})

    def with_execution(self, changes: Mapping[str, Any]) -> "ImageConfig":
        """A copy with fields of the inner config replaced; a None removes the field."""
        merged = {**self.execution, **changes}
        return dataclasses.replace(
            self, execution={key: value for key, value in merged.items() if value is not None}
        )


_KNOWN = frozenset({"os", "architecture", "variant", "config", "rootfs", "history", "created"})


def layer_history(history: Sequence[Mapping[str, Any]]) -> int:
    """How many layers ``history`` accounts for: its entries without ``empty_layer``."""
    return sum(1 for entry in history if not entry.get("empty_layer"))
