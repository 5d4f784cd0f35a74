"""Descriptors: media type, digest and size of some content (image-spec v1.1, descriptor.md)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ocikit.digest import Digest
from ocikit.errors import InvalidManifest


@dataclasses.dataclass(frozen=True, slots=True)
class Platform:
    """Where an image runs; ``extra`` keeps ``os.version`` and the like."""

    os: str
    architecture: str
    variant: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Reads ``os/architecture[/variant]``; raises ValueError."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise ValueError(f"{text!r} is not a platform; write os/architecture[/variant], e.g. linux/amd64")
        return cls(parts[0], parts[1], parts[2] if len(parts) == 3 else "")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def dump(self) -> dict[str, Any]:
        variant = {"variant": self.variant} if self.variant else {}
        return {**self.extra, "os": self.os, "architecture": self.architecture, **variant}

    def satisfies(self, wanted: "Platform") -> bool:
        """Whether an image for this platform may be given to who wants ``wanted``; no variant means any."""
        same = (self.os, self.architecture) == (wanted.os, wanted.architecture)
        return same and (not wanted.variant or not self.variant or self.variant == wanted.variant)


@dataclasses.dataclass(frozen=True, slots=True)
class Descriptor:
    """Immutable; ``extra`` keeps the fields this class has no name for, such as ``urls`` or ``data``."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, raw: Any, subject: str = "descriptor") -> "Descriptor":
        """From decoded JSON. Raises InvalidManifest or InvalidDigest."""
        if not isinstance(raw, Mapping):
            raise InvalidManifest("must be an object", subject)
        media_type, digest, size = raw.get("mediaType"), raw.get("digest"), raw.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise InvalidManifest("needs the strings mediaType and digest", subject)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidManifest(f"size {size!r} is not a number of bytes", subject)
        return cls(
            media_type,
            Digest.parse(digest),
            size,
            parse_annotations(raw.get("annotations"), subject),
            _parse_platform(raw.get("platform"), subject),
            _string(raw, "artifactType", subject),
            {key: value for key, value in raw.items() if key not in _KNOWN},
        )

    def dump(self) -> dict[str, Any]:
        """For JSON; absent things are left out."""
        dumped: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            dumped["annotations"] = dict(self.annotations)
        if self.platform is not None:
            dumped["platform"] = self.platform.dump()
        if self.artifact_type:
            dumped["artifactType"] = self.artifact_type
        return {**self.extra, **dumped}

    def with_annotations(self, annotations: Mapping[str, str]) -> "Descriptor":
        """A copy with ``annotations`` added over those it has."""
        return dataclasses.replace(self, annotations={**self.annotations, **annotations})


_KNOWN = frozenset({"mediaType", "digest", "size", "annotations", "platform", "artifactType"})


def parse_annotations(raw: Any, subject: str) -> Mapping[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping) or not all(isinstance(value, str) for value in raw.values()):
        raise InvalidManifest("annotations must map strings to strings", subject)
    return dict(raw)


def _string(raw: Mapping[str, Any], key: str, subject: str) -> str:
    value = raw.get(key, "")
    if not isinstance(value, str):
        raise InvalidManifest(f"{key} must be a string", subject)
    return value


def _parse_platform(raw: Any, subject: str) -> Platform | None:
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise InvalidManifest("platform must be an object", subject)
    known = ("os", "architecture", "variant")
    extra = {key: value for key, value in raw.items() if key not in known}
    os, architecture, variant = (_string(raw, key, subject) for key in known)
    return Platform(os, architecture, variant, extra)
