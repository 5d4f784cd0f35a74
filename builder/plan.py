"""What to build and what to take as it is, and why: decided here, done elsewhere."""

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from builder.fingerprint import Inputs, differences

_SHOWN_DIFFERENCES = 3


class Action(enum.StrEnum):
    BUILD = "build"
    REUSE = "reuse"
    REBASE = "rebase"
    """Only the base differs from an earlier build, whose layers pass the tests on the new one."""
    PULL = "pull"
    """It is in another repository: taken from there, by mounting where the registry can."""


@dataclass(frozen=True, slots=True)
class Published:
    """A chunk as a repository has it, under the tag of its present inputs."""

    base_digest: str
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class PlannedAction:
    chunk: str
    action: Action
    reason: str


def plan_chunk(
    name: str,
    inputs: Inputs,
    *,
    base_digest: str | None,
    published: Published | None,
    earlier: Collection[Inputs] = (),
    forced: bool = False,
) -> PlannedAction:
    """``base_digest`` None means that the base is yet to be built; "" that ``name`` has no base.

    ``earlier`` are the inputs of the chunk's other builds in the repository: the reason is the difference
    from the nearest of them.
    """
    if forced:
        return PlannedAction(name, Action.BUILD, "forced")
    if published is None:
        return PlannedAction(name, Action.BUILD, _explain(inputs, earlier))
    if base_digest is None:
        return PlannedAction(name, Action.BUILD, "the base is built anew")
    if base_digest and published.base_digest != base_digest:
        return PlannedAction(name, Action.BUILD, "base changed: same sources, another image")
    if published.elsewhere:
        return PlannedAction(name, Action.PULL, "unchanged, in another repository")
    return PlannedAction(name, Action.REUSE, "unchanged")


def _explain(inputs: Inputs, earlier: Collection[Inputs]) -> str:
    changes = min((differences(inputs, other) for other in earlier), key=len, default=None)
    if changes is None:
        return "new"
    more = len(changes) - _SHOWN_DIFFERENCES
    shown = list(changes[:_SHOWN_DIFFERENCES]) + ([f"and {more} more"] if more > 0 else [])
    return "; ".join(shown) or "there under another hash only"


def layer_order(order: str, combinations: Mapping[str, Sequence[str]], *, chosen: str) -> Sequence[str]:
    """The chunks of combination ``chosen`` in the order they are stacked.

    Popular chunks first (ties by name) lets combinations share the longest common stacks: an unpacked
    snapshot is shared only together with all that lies under it.
    """
    chunks = combinations[chosen]
    if order == "as-written":
        return tuple(chunks)
    if order == "alphabetical":
        return tuple(sorted(chunks))
    uses = popularity(combinations)
    return tuple(sorted(chunks, key=lambda chunk: (-uses[chunk], chunk)))


def pinned_order(chunks: Sequence[str], published: Sequence[str]) -> Sequence[str]:
    """``chunks`` as an image that is out has them, what is new on top: who has the image keeps its layers."""
    kept = [name for name in dict.fromkeys(published) if name in chunks]
    return (*kept, *(name for name in chunks if name not in kept))


def popularity(combinations: Mapping[str, Sequence[str]]) -> Mapping[str, int]:
    """In how many combinations each chunk is."""
    uses: dict[str, int] = {}
    for chunks in combinations.values():
        for chunk in set(chunks):
            uses[chunk] = uses.get(chunk, 0) + 1
    return uses


def chain_id_counts(combinations: Mapping[str, Sequence[str]]) -> Mapping[str, int]:
    """How many distinct stacks (unpacked snapshots) each order makes, counting a chunk as one layer.

    ``lower_bound`` is the number of distinct chunks: no order can do with fewer.
    """
    counts = {
        order: stack_count([layer_order(order, combinations, chosen=name) for name in combinations])
        for order in ("alphabetical", "as-written", "popularity")
    }
    return {**counts, "lower_bound": len({chunk for chunks in combinations.values() for chunk in chunks})}


def stack_count(orders: Iterable[Sequence[str]]) -> int:
    """How many distinct stacks there are, with all that they are built up from."""
    return len({tuple(order[:depth]) for order in orders for depth in range(1, len(order) + 1)})
