"""What initializers may do, and on whose behalf."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be asked: by which ``protocols``, and ``hosts`` that may be on a private network."""

    protocols: Collection[str] = ("https",)
    hosts: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """Who runs git, and whose the files are."""

    uid: int
    gid: int
