"""Manifests and indexes (image-spec v1.1, manifest.md and image-index.md).

A parsed document keeps the bytes it came from: its digest is over those, and nobody may re-serialise what
somebody else signed. Documents that are made here are dumped canonically (sorted keys, no blanks), so that
the same content has the same digest on every node.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ocikit import media_types
from ocikit.descriptor import Descriptor, Platform, parse_annotations
from ocikit.digest import Digest
from ocikit.errors import InvalidManifest, UnsupportedMediaType

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""Registries must accept 4 MiB (distribution-spec v1.1, "Pushing Manifests"); more is refused unread."""


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """The one serialisation of documents made here."""
    try:
        return _dump(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can say (RFC 8259, 8.2) and UTF-8 cannot
        return _dump(document, ensure_ascii=True).encode()


def _dump(document: Mapping[str, Any], *, ensure_ascii: bool) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=ensure_ascii)


@dataclasses.dataclass(frozen=True, slots=True)
class RawManifest:
    """A manifest or index as it came: bytes and the media type they were announced with."""

    media_type: str
    data: bytes
    digest: Digest

    @classmethod
    def of(cls, media_type: str, data: bytes) -> "RawManifest":
        return cls(media_type, data, Digest.of(data))

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.data))


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """One image: a config and its layers, bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = media_types.OCI_MANIFEST
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    subject: Descriptor | None = None
    artifact_type: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, media_type: str = "", subject: str = "manifest") -> "Manifest":
        """Raises InvalidManifest; ``media_type`` is what the bytes were announced with, if known."""
        raw = _decode(data, subject)
        stated = _stated_media_type(raw, media_type, media_types.OCI_MANIFEST, media_types.MANIFESTS, subject)
        if "manifests" in raw:
            raise InvalidManifest("has both layers and manifests", subject)
        layers = raw.get("layers") or []
        if not isinstance(layers, list):
            raise InvalidManifest("layers must be a list", subject)
        return cls(
            Descriptor.parse(raw.get("config"), f"{subject}: config"),
            tuple(Descriptor.parse(layer, f"{subject}: layer {at}") for at, layer in enumerate(layers)),
            stated,
            parse_annotations(raw.get("annotations"), subject),
            Descriptor.parse(raw["subject"], f"{subject}: subject") if raw.get("subject") else None,
            str(raw.get("artifactType", "")),
            {key: value for key, value in raw.items() if key not in _MANIFEST_KEYS},
        )

    def dump(self) -> bytes:
        """Canonical bytes."""
        document: dict[str, Any] = {
            **self.extra,
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.dump(),
            "layers": [layer.dump() for layer in self.layers],
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.subject is not None:
            document["subject"] = self.subject.dump()
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        return canonical_json(document)


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """Several manifests, usually one per platform."""

    manifests: tuple[Descriptor, ...]
    media_type: str = media_types.OCI_INDEX
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    subject: Descriptor | None = None
    artifact_type: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, media_type: str = "", subject: str = "index") -> "Index":
        """Raises InvalidManifest."""
        raw = _decode(data, subject)
        stated = _stated_media_type(raw, media_type, media_types.OCI_INDEX, media_types.INDEXES, subject)
        manifests = raw.get("manifests") or []
        if not isinstance(manifests, list) or "layers" in raw:
            raise InvalidManifest("manifests must be a list, beside no layers", subject)
        return cls(
            tuple(Descriptor.parse(item, f"{subject}: manifest {at}") for at, item in enumerate(manifests)),
            stated,
            parse_annotations(raw.get("annotations"), subject),
            Descriptor.parse(raw["subject"], f"{subject}: subject") if raw.get("subject") else None,
            str(raw.get("artifactType", "")),
            {key: value for key, value in raw.items() if key not in _INDEX_KEYS},
        )

    def dump(self) -> bytes:
        """Canonical bytes."""
        document: dict[str, Any] = {
            **self.extra,
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [manifest.dump() for manifest in self.manifests],
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.subject is not None:
            document["subject"] = self.subject.dump()
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        return canonical_json(document)

    def select(self, platform: Platform) -> Descriptor | None:
        """The first manifest for ``platform``; one with exactly its variant is preferred."""
        fitting = [
            item for item in self.manifests if item.platform is not None and item.platform.satisfies(platform)
        ]
        exact = [
            item
            for item in fitting
            if item.platform is not None and item.platform.variant == platform.variant
        ]
        return next(iter([*exact, *fitting]), None)


def parse_manifest_or_index(raw: RawManifest, subject: str = "") -> Manifest | Index:
    """Whichever ``raw`` is, going by its media type. Raises InvalidManifest or UnsupportedMediaType."""
    subject = subject or f"manifest {raw.digest.short}"
    if media_types.is_index(raw.media_type):
        return Index.parse(raw.data, raw.media_type, subject)
    if media_types.is_manifest(raw.media_type):
        return Manifest.parse(raw.data, raw.media_type, subject)
    raise UnsupportedMediaType(raw.media_type, "an OCI or Docker schema 2 image manifest or index")


def detect_media_type(data: bytes, announced: str = "") -> str:
    """The media type a document states, else ``announced``, else what its fields show."""
    raw = _decode(data, "manifest")
    stated = raw.get("mediaType")
    if isinstance(stated, str) and stated:
        return stated
    if announced and announced not in {"application/json", "application/octet-stream"}:
        return announced
    return media_types.OCI_INDEX if "manifests" in raw else media_types.OCI_MANIFEST


def child_descriptors(document: Manifest | Index) -> Sequence[Descriptor]:
    """Everything ``document`` needs to be complete, the config first."""
    return document.manifests if isinstance(document, Index) else (document.config, *document.layers)


_MANIFEST_KEYS = frozenset(
    {"schemaVersion", "mediaType", "config", "layers", "annotations", "subject", "artifactType"}
)
_INDEX_KEYS = frozenset({"schemaVersion", "mediaType", "manifests", "annotations", "subject", "artifactType"})


def _decode(data: bytes, subject: str) -> Mapping[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"{len(data)} bytes, more than {MAX_MANIFEST_BYTES}", subject)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(f"not JSON: {error}", subject) from error
    if not isinstance(raw, dict):
        raise InvalidManifest("must be an object", subject)
    if raw.get("schemaVersion") != 2:
        raise InvalidManifest(f"schemaVersion {raw.get('schemaVersion')!r} is not 2", subject)
    return raw


def _stated_media_type(
    raw: Mapping[str, Any], announced: str, default: str, allowed: frozenset[str], subject: str
) -> str:
    stated = raw.get("mediaType") or announced or default
    if not isinstance(stated, str) or stated not in allowed:
        raise InvalidManifest(f"media type {stated!r} does not belong here", subject)
    if announced and announced in media_types.MANIFESTS | media_types.INDEXES and stated != announced:
        raise InvalidManifest(f"was announced as {announced} but says it is {stated}", subject)
    return stated
