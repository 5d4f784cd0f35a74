"""How the environments of a base and its chunks become one.

Each chunk inherits the base's environment, so what it *says* is only what differs from the base's. Those
real changes are merged in order by dazzle's actions; values may hold ``=``.
"""

import enum
from collections.abc import Mapping, Sequence


class EnvAction(enum.StrEnum):
    """What happens to a variable that several images set."""

    USE_FIRST = "use-first"
    USE_LAST = "use-last"
    MERGE = "merge"
    MERGE_UNIQUE = "merge-unique"


def merge_env(
    base: Mapping[str, str],
    chunks: Sequence[Mapping[str, str]],
    actions: Mapping[str, EnvAction],
) -> Mapping[str, str]:
    """The base's variables in their order, then the chunks' new ones in the order they come."""
    merged = dict(base)
    for env in chunks:
        for name, value in env.items():
            if base.get(name) == value:
                continue
            action = actions.get(name, EnvAction.USE_FIRST)
            merged[name] = merge_values(action, merged[name], value) if name in merged else value
    return merged


def merge_values(action: EnvAction, existing: str, new: str) -> str:
    """``merge-unique`` keeps the last occurrence of each element, so that prepending to PATH works."""
    match action:
        case EnvAction.USE_FIRST:
            return existing
        case EnvAction.USE_LAST:
            return new
        case EnvAction.MERGE:
            return f"{existing}:{new}"
        case EnvAction.MERGE_UNIQUE:
            elements = [*existing.split(":"), *new.split(":")]
            return ":".join(reversed(dict.fromkeys(reversed(elements))))
