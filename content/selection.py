"""From an index to the windows that a restore fetches; pure."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from content.archive.id_map import IdMap
from content.archive.index import Entry, IndexReader, Places
from content.errors import PathNotInSnapshot
from content.objects.base import Span

WINDOW_BYTES = 8 << 20
_MAX_GAP_BYTES = 64 << 10
"""Bytes nobody wants that are fetched rather than asked around; a request costs more."""
MAX_HELD_BYTES = WINDOW_BYTES + _MAX_GAP_BYTES
"""The longest window that is not streamed."""


@dataclass(frozen=True, slots=True)
class Window:
    """Members to restore that lie close together: where each is in the tar, its length, its CRC-32."""

    span: Span
    offsets: Sequence[int]
    lengths: Sequence[int]
    crc32: Sequence[int]

    @property
    def is_streamed(self) -> bool:
        """One member that is too large to be held."""
        return self.span.length > MAX_HELD_BYTES


@dataclass(slots=True)
class Selection:
    """What to restore. ``above`` are the directories over it, from the index alone; ``content_bytes`` is
    what it will take on disk, holes not counted. ``rebuilt``: the index was lost, and read from the tar.
    ``ids`` are those of the index's header.
    """

    windows: list[Window] = field(default_factory=list)
    above: list[Entry] = field(default_factory=list)
    entries: int = 0
    tar_bytes: int = 0
    content_bytes: int = 0
    rebuilt: bool = False
    ids: IdMap | None = None


def choose(index: IndexReader, only: Sequence[str], snapshot_id: str) -> Selection:
    """The entries at or below the paths ``only`` (all, when empty), with the directories above them.
    Raises PathNotInSnapshot. Blocking.
    """
    places = Places(index.header.pieces)
    places_of = places.tar_offset
    missing = set(only)
    offsets, lengths, crcs = array("Q"), array("Q"), array("I")
    selection = Selection(ids=index.header.ids)
    ordered = True
    for entry in index.entries():
        if only and not _wanted(entry.path, only, missing):
            if entry.type == "d" and any(path.startswith(entry.path + "/") for path in only):
                selection.above.append(entry)
            continue
        offset = places_of(entry.segment, entry.at)
        ordered = ordered and (not offsets or offset > offsets[-1])
        offsets.append(offset)
        lengths.append(entry.length)
        crcs.append(entry.crc32)
        selection.content_bytes += entry.length
    if missing:
        raise PathNotInSnapshot(min(missing), snapshot_id)
    rows: Iterable[int] = range(len(offsets))
    if not ordered:
        rows = sorted(rows, key=offsets.__getitem__)
    selection.windows = list(_windows(rows, offsets, lengths, crcs))
    selection.entries = len(offsets)
    selection.tar_bytes = sum(window.span.length for window in selection.windows)
    return selection


def _wanted(path: str, only: Sequence[str], missing: set[str]) -> bool:
    for wanted in only:
        if path == wanted or path.startswith(wanted + "/") or wanted == "":
            missing.discard(wanted)
            return True
    return False


def _windows(
    rows: Iterable[int], offsets: Sequence[int], lengths: Sequence[int], crcs: Sequence[int]
) -> Iterable[Window]:
    start, end = 0, 0
    members: list[int] = []

    def made() -> Window:
        span = Span(start, end - start)
        return Window(
            span,
            array("Q", [offsets[row] for row in members]),
            array("Q" if span.length > MAX_HELD_BYTES else "I", [lengths[row] for row in members]),
            array("I", [crcs[row] for row in members]),
        )

    for row in rows:
        offset, length = offsets[row], lengths[row]
        if members and (offset + length - start > WINDOW_BYTES or offset - end > _MAX_GAP_BYTES):
            yield made()
            members = []
        if not members:
            start = offset
        members.append(row)
        end = offset + length
    if members:
        yield made()
