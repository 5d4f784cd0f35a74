"""Which ranges of the previous tar the next one takes over; pure (docs/backup-format.md, "Segments").

Offsets named ``old`` are in the previous tar, ``new`` in the one to be made.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from content.archive import crc32
from content.archive.index import UNREADABLE, Dead, Entry, Piece, Places

MIN_COPY_BYTES = 5 << 20
MAX_COPY_BYTES = 256 << 20
MAX_PART_BYTES = 5 << 30
MAX_DEAD_SHARE = 0.2
MIN_COPIED_SHARE = 0.3
Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CopyRange:
    """Bytes of the previous tar that become the part ``number`` of the next."""

    number: int
    old_offset: int
    new_offset: int
    length: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Layout:
    """``kept`` are intervals of the previous tar, in order; the rest is not taken over."""

    kept: tuple[Interval, ...]

    @property
    def copied_bytes(self) -> int:
        return sum(stop - start for start, stop in self.kept)

    def holds(self, old_offset: int) -> bool:
        """Whether the member there is taken over."""
        at = bisect_right(self.kept, (old_offset, 1 << 62)) - 1
        return at >= 0 and self.kept[at][0] <= old_offset < self.kept[at][1]


def lay_out(pieces: Sequence[Piece], cut: Iterable[Entry], replaced: Iterable[Entry]) -> Layout:
    """Cuts out what must go, and dead members where they are too many; drops runs too short to copy."""
    places = Places(pieces)
    cut = list(cut)
    paths = {UNREADABLE, *(entry.path for entry in cut)}
    gone = [_interval(places, entry.segment, entry.at, entry.length) for entry in cut]
    dead: dict[int, list[Dead]] = {number: list(piece.dead) for number, piece in enumerate(pieces)}
    for entry in replaced:
        dead[_piece_of(pieces, entry)].append(Dead(entry.at, entry.length, entry.crc32, entry.path))
    for number, members in dead.items():
        piece = pieces[number]
        gone += [
            _interval(places, piece.segment, member.at, member.length)
            for member in members
            if member.path in paths
        ]
        if sum(member.length for member in members) > MAX_DEAD_SHARE * piece.length:
            gone += [_interval(places, piece.segment, member.at, member.length) for member in members]
    whole = [(piece.tar_offset, piece.tar_offset + piece.length) for piece in pieces]
    gone += [(start, stop) for start, stop in whole if stop - start > MAX_PART_BYTES]
    runs = _subtract(_merge(whole), _merge(gone))
    return Layout(tuple((start, stop) for start, stop in runs if stop - start >= MIN_COPY_BYTES))


def _piece_of(pieces: Sequence[Piece], entry: Entry) -> int:
    for number, piece in enumerate(pieces):
        if piece.segment == entry.segment and piece.start <= entry.at < piece.start + piece.length:
            return number
    raise ValueError("the index has an entry outside its pieces")


def _interval(places: Places, segment: int, at: int, length: int) -> Interval:
    start = places.tar_offset(segment, at)
    return start, start + length


def _merge(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _subtract(intervals: Iterable[Interval], holes: Sequence[Interval]) -> list[Interval]:
    left: list[Interval] = []
    at = 0
    for first, stop in intervals:
        start = first
        while at < len(holes) and holes[at][1] <= start:
            at += 1
        ahead = at
        while ahead < len(holes) and holes[ahead][0] < stop:
            if holes[ahead][0] > start:
                left.append((start, holes[ahead][0]))
            start = max(start, holes[ahead][1])
            ahead += 1
        if start < stop:
            left.append((start, stop))
    return left


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the previous tar, wherever it came from."""

    old_offset: int
    length: int
    crc32: int


def new_pieces(layout: Layout, pieces: Sequence[Piece], members: Sequence[Member]) -> list[Piece]:
    """The pieces of the copied part. ``members`` are all in pieces that the layout splits, in order; whole
    pieces keep the CRC-32 they have.
    """
    made: list[Piece] = []
    new = 0
    ordered = sorted(pieces, key=lambda piece: piece.tar_offset)
    for start, stop in layout.kept:
        for piece in ordered:
            first = max(start, piece.tar_offset)
            last = min(stop, piece.tar_offset + piece.length)
            if first >= last:
                continue
            inside = first - piece.tar_offset + piece.start
            checksum = piece.crc32
            if last - first != piece.length:
                checksum = _fold(member for member in members if first <= member.old_offset < last)
            kept_dead = tuple(dead for dead in piece.dead if inside <= dead.at < inside + last - first)
            made.append(Piece(piece.segment, inside, last - first, new + first - start, checksum, kept_dead))
        new += stop - start
    return made


def _fold(members: Iterable[Member]) -> int:
    total = 0
    for member in members:
        total = crc32.combine(total, member.crc32, member.length)
    return total


def with_dead(pieces: Sequence[Piece], dead: Iterable[Entry]) -> list[Piece]:
    """The pieces with more dead members."""
    made = list(pieces)
    for entry in dead:
        number = _piece_of(made, entry)
        added = Dead(entry.at, entry.length, entry.crc32, entry.path)
        if added not in made[number].dead:
            made[number] = replace(made[number], dead=(*made[number].dead, added))
    return made


def copy_ranges(layout: Layout, copied: Sequence[Piece]) -> list[CopyRange]:
    """The parts that the store copies, numbered from 1: runs of whole pieces (`new_pieces`), of 5 MiB to
    about 256 MiB, unless one piece is larger.
    """
    made: list[CopyRange] = []
    pieces = iter(copied)
    new = 0
    for start, stop in layout.kept:
        first = len(made)
        run_start, run_length, checksum = new, 0, 0
        while run_start + run_length < new + stop - start:
            piece = next(pieces)
            if run_length >= MIN_COPY_BYTES and run_length + piece.length > MAX_COPY_BYTES:
                old = start + run_start - new
                made.append(CopyRange(len(made) + 1, old, run_start, run_length, checksum))
                run_start, run_length, checksum = run_start + run_length, 0, 0
            run_length += piece.length
            checksum = crc32.combine(checksum, piece.crc32, piece.length)
        if run_length < MIN_COPY_BYTES and len(made) > first:  # too short alone: joins the one before
            before = made.pop()
            checksum = crc32.combine(before.crc32, checksum, run_length)
            run_start, run_length = before.new_offset, before.length + run_length
        made.append(CopyRange(len(made) + 1, start + run_start - new, run_start, run_length, checksum))
        new += stop - start
    return made
