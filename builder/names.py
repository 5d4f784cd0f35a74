"""Names of what the builder stores in a repository; dazzle's, so that people find what they know."""

import re

from ocikit.digest import Digest
from ocikit.reference import is_tag

_HASH_LENGTH = 64
_PARTS = ("--chunked", "--contents", "--test", "--full", "--test-result", "--spdx", "--tests")
_FALLBACK = re.compile(r"(sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})")


def base_tag(input_hash: str) -> str:
    return f"base--{input_hash}"


def chunked_tag(name: str, input_hash: str) -> str:
    """Only the chunk's own layers. ``:`` of a variant becomes ``-``, for a tag holds no colon."""
    return f"{chunked_prefix(name)}{input_hash}--chunked"


def chunked_prefix(name: str) -> str:
    """What the tags of all builds of a chunk begin with."""
    return f"{name.replace(':', '-')}--"


def contents_tag(tag: str) -> str:
    """The tables of contents of the layers of the image under ``tag``."""
    return f"{tag.removesuffix('--chunked')}--contents"


def fallback_tag(subject: Digest) -> str:
    """Where the referrers of ``subject`` are listed by registries that cannot (distribution-spec v1.1)."""
    return f"{subject.algorithm}-{subject.encoded}"


def is_image_tag(tag: str) -> bool:
    """Whether a tag may be an image that people run: no base, no part of one, nothing that refers to one."""
    return not (tag.startswith("base--") or tag.endswith(_PARTS) or _FALLBACK.fullmatch(tag))


def name_problem(name: str) -> str | None:
    """Why a chunk cannot be called so; None when it can."""
    if is_tag(chunked_tag(name, "0" * _HASH_LENGTH)):
        return None
    return (
        f"{name!r} cannot be a chunk's name: tags are made of it (A-Z a-z 0-9 _ . - and at most 53 of them)"
    )
