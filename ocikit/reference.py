"""Names of images: ``registry/repository:tag``, ``registry/repository@digest``, ``oci:DIR:tag``.

The grammar of repository and tag is the distribution specification's ("Pulling manifests"); the registry
is always written out, because a tool for operators guesses no default registry.
"""

import dataclasses
import re
from pathlib import Path

from ocikit.digest import Digest
from ocikit.errors import InvalidDigest, InvalidReference

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"^{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")
_REGISTRY = re.compile(r"^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?\Z")
_MAX_REPOSITORY = 255


def is_repository(text: str) -> bool:
    return len(text) <= _MAX_REPOSITORY and _REPOSITORY.match(text) is not None


def is_tag(text: str) -> bool:
    return _TAG.match(text) is not None


def parse_tag_or_digest(text: str) -> str | Digest:
    """What may stand after ``/manifests/``. Raises InvalidReference."""
    if ":" in text:
        try:
            return Digest.parse(text)
        except InvalidDigest as error:
            raise InvalidReference(text, "not a digest that is supported here") from error
    if not is_tag(text):
        raise InvalidReference(text, "a tag has 1 to 128 of A-Z a-z 0-9 _ . - and starts with none of . -")
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class RepositoryName:
    """Where images live: a repository of a registry, or (``layout``) an OCI layout directory."""

    registry: str = ""
    repository: str = ""
    layout: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "RepositoryName":
        """Reads ``registry/repository`` or ``oci:DIR``. Raises InvalidReference."""
        if text.startswith("oci:"):
            if not text.removeprefix("oci:"):
                raise InvalidReference(text, "oci: needs a directory")
            return cls(layout=Path(text.removeprefix("oci:")))
        registry, separator, repository = text.partition("/")
        if not separator or not _looks_like_registry(registry):
            raise InvalidReference(text, "must begin with a registry, e.g. registry.example/team/image:tag")
        if not is_repository(repository):
            raise InvalidReference(text, "a repository has lower-case words joined by / . _ -")
        return cls(registry, repository)

    def __str__(self) -> str:
        return f"oci:{self.layout}" if self.layout is not None else f"{self.registry}/{self.repository}"

    def with_reference(self, reference: str) -> "Reference":
        return Reference(self, parse_tag_or_digest(reference))


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """One image of a repository, by tag or by digest."""

    name: RepositoryName
    reference: str | Digest

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Raises InvalidReference. Without a tag ``latest`` is meant; a tag beside a digest is dropped."""
        if text.startswith("oci:"):
            return cls._parse_layout(text)
        rest, _, digest = text.partition("@")
        name, tag = rest, ""
        if ":" in rest.rpartition("/")[2]:
            name, _, tag = rest.rpartition(":")
        if "@" in text:
            return cls(RepositoryName.parse(name), _digest(digest, text))
        if tag == "" and name != rest:
            raise InvalidReference(text, "the tag is empty")
        return cls(RepositoryName.parse(name), parse_tag_or_digest(tag or "latest"))

    @classmethod
    def _parse_layout(cls, text: str) -> "Reference":
        rest = text.removeprefix("oci:")
        directory, separator, digest = rest.partition("@")
        if separator:
            return cls(RepositoryName.parse(f"oci:{directory}"), _digest(digest, text))
        directory, separator, tag = rest.rpartition(":")
        if not separator or not directory:
            raise InvalidReference(text, "write oci:DIR:tag or oci:DIR@digest")
        return cls(RepositoryName.parse(f"oci:{directory}"), parse_tag_or_digest(tag))

    @property
    def is_digest(self) -> bool:
        return isinstance(self.reference, Digest)

    def __str__(self) -> str:
        return f"{self.name}{'@' if self.is_digest else ':'}{self.reference}"


def _looks_like_registry(text: str) -> bool:
    """The rule every client shares: a first component with a dot or a port, or localhost, is a host."""
    return _REGISTRY.match(text) is not None and ("." in text or ":" in text or text == "localhost")


def _digest(text: str, whole: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidReference(whole, str(error)) from error
