"""Names of what the builder stores in a repository; dazzle's, so that people find what they know."""

from ocikit.reference import is_tag

_HASH_LENGTH = 64


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


def name_problem(name: str) -> str | None:
    """Why a chunk cannot be called so; None when it can."""
    if is_tag(chunked_tag(name, "0" * _HASH_LENGTH)):
        return None
    return (
        f"{name!r} cannot be a chunk's name: tags are made of it (A-Z a-z 0-9 _ . - and at most 53 of them)"
    )
