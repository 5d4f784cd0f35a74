"""Who keeps which digest: rendezvous hashing, so that a facade that comes or goes moves only its share."""

import hashlib
from collections.abc import Iterable, Sequence


def ranked(digest: str, members: Iterable[str]) -> Sequence[str]:
    """Every member, the keeper first; whoever is next takes over from one that does not answer."""
    return sorted(members, key=lambda member: hashlib.sha256(f"{member}\n{digest}".encode()).digest())
