"""glibc's /etc/ld.so.cache, read and written, so that the caches of several chunks can be merged; pure.

The format is that of glibc 2.2 and later (sysdeps/generic/dl-cache.h, elf/cache.c): a header, entries sorted
so that the loader can search them, strings, and since 2.33 extensions that name subdirectories for newer
processors. A cache in the older form is in front of the new one and is not written again.
"""

import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MAGIC = b"glibc-ld.so.cache1.1"
_OLD_MAGIC = b"ld.so-1.7.0\0"
_OLD_ENTRY_BYTES = 12
_HEADER = struct.Struct("<20sIIB3xI12x")
_ENTRY = struct.Struct("<iIIIQ")
_LITTLE_ENDIAN = 2
_EXTENSION_MAGIC = 0xEAA42174
_SECTION = struct.Struct("<IIII")
_GENERATOR, _SUBDIRECTORIES = 0, 1
_IN_SUBDIRECTORY = 1 << 62
_INDEX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Library:
    """``hwcap`` is without the index of ``subdirectory`` (of glibc-hwcaps), which is empty for most."""

    name: bytes
    path: bytes
    flags: int
    osversion: int
    hwcap: int
    subdirectory: bytes = b""


@dataclass(frozen=True, slots=True)
class LdCache:
    """``libraries`` in the order in which the loader looks at them; ``generator`` says who wrote it."""

    libraries: tuple[Library, ...]
    generator: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> "LdCache":
        """Raises ValueError for what is no cache of a little-endian glibc."""
        try:
            return _parse(data[_new_format_offset(data) :])
        except (struct.error, IndexError) as error:
            raise ValueError(f"not an ld.so.cache: {error}") from error

    def dump(self) -> bytes:
        """Sorted as ldconfig sorts them, strings once each."""
        ordered = sorted(self.libraries, key=functools.cmp_to_key(_compare))
        subdirectories = sorted({one.subdirectory for one in ordered if one.subdirectory})
        strings = _Strings(_HEADER.size + _ENTRY.size * len(ordered))
        entries = b"".join(_packed(one, subdirectories, strings) for one in ordered)
        names = [strings.offset(name) for name in subdirectories]
        padding = -len(strings.data) % 4
        extension_at = strings.start + len(strings.data) + padding
        header = _HEADER.pack(_MAGIC, len(ordered), len(strings.data), _LITTLE_ENDIAN, extension_at)
        extension = _extension(extension_at, self.generator, names)
        return header + entries + bytes(strings.data) + bytes(padding) + extension


def _new_format_offset(data: bytes) -> int:
    if not data.startswith(_OLD_MAGIC):
        return 0
    (entries,) = struct.unpack_from("<I", data, len(_OLD_MAGIC))
    end = len(_OLD_MAGIC) + 4 + entries * _OLD_ENTRY_BYTES
    return int(end + -end % 8)


def _parse(data: bytes) -> LdCache:
    magic, count, _, endian, extension_at = _HEADER.unpack_from(data)
    if magic != _MAGIC or endian not in {0, _LITTLE_ENDIAN}:
        raise ValueError("not an ld.so.cache of a little-endian glibc")
    sections = _sections(data, extension_at)
    at, size = sections.get(_SUBDIRECTORIES, (0, 0))
    names = [_string(data, offset) for (offset,) in struct.iter_unpack("<I", data[at : at + size])]
    libraries: list[Library] = []
    for position in range(count):
        flags, key, value, osversion, hwcap = _ENTRY.unpack_from(data, _HEADER.size + position * _ENTRY.size)
        subdirectory = names[hwcap & _INDEX] if hwcap & _IN_SUBDIRECTORY else b""
        kept = hwcap & ~_INDEX if subdirectory else hwcap
        strings = _string(data, key), _string(data, value)
        libraries.append(Library(*strings, flags, osversion, kept, subdirectory))
    at, size = sections.get(_GENERATOR, (0, 0))
    return LdCache(tuple(libraries), data[at : at + size])


def _sections(data: bytes, extension_at: int) -> Mapping[int, tuple[int, int]]:
    """Tag -> offset and size."""
    if not extension_at:
        return {}
    magic, count = struct.unpack_from("<II", data, extension_at)
    if magic != _EXTENSION_MAGIC:
        raise ValueError("an ld.so.cache with extensions that are none")
    found = (_SECTION.unpack_from(data, extension_at + 8 + at * _SECTION.size) for at in range(count))
    return {tag: (offset, size) for tag, _, offset, size in found}


def _string(data: bytes, offset: int) -> bytes:
    end = data.find(b"\0", offset)
    if not 0 < offset < len(data) or end < 0:
        raise ValueError("an ld.so.cache with a string outside of it")
    return data[offset:end]


class _Strings:
    """The string table that is being made; offsets count from the header's first byte."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.data = bytearray()
        self._known: dict[bytes, int] = {}

    def offset(self, text: bytes) -> int:
        if text not in self._known:
            self._known[text] = self.start + len(self.data)
            self.data += text + b"\0"
        return self._known[text]


def _packed(library: Library, subdirectories: Sequence[bytes], strings: _Strings) -> bytes:
    hwcap = library.hwcap
    if library.subdirectory:
        hwcap |= subdirectories.index(library.subdirectory)
    value = strings.offset(library.path)
    is_tail = library.path.endswith(library.name)  # nearly always: then one string does for both
    key = value + len(library.path) - len(library.name) if is_tail else strings.offset(library.name)
    return _ENTRY.pack(library.flags, key, value, library.osversion, hwcap)


def _extension(start: int, generator: bytes, names: Sequence[int]) -> bytes:
    contents = {_GENERATOR: generator, _SUBDIRECTORIES: struct.pack(f"<{len(names)}I", *names)}
    present = {tag: content for tag, content in contents.items() if content}
    offset = start + 8 + _SECTION.size * len(present)
    head, body = struct.pack("<II", _EXTENSION_MAGIC, len(present)), bytearray()
    for tag in sorted(present, reverse=True):  # numbers first, so that they are aligned
        head += _SECTION.pack(tag, 0, offset + len(body), len(present[tag]))
        body += present[tag]
    return head + bytes(body)


def _compare(one: Library, other: Library) -> int:
    """elf/cache.c, compare(): names descending, then flags, then subdirectories before all else."""
    order = _compare_names(other.name, one.name)
    if order or one.flags != other.flags:
        return order or (1 if one.flags < other.flags else -1)
    if bool(one.subdirectory) != bool(other.subdirectory):
        return -1 if one.subdirectory else 1
    if one.subdirectory != other.subdirectory:
        return -1 if one.subdirectory < other.subdirectory else 1
    return (other.hwcap > one.hwcap) - (other.hwcap < one.hwcap)


def _compare_names(one: bytes, other: bytes) -> int:
    """elf/dl-cache.c, _dl_cache_libcmp(): numbers by value, and after everything that is none."""
    left, right = 0, 0
    while left < len(one):
        digits = _digits(one, left), _digits(other, right)
        if all(digits):
            values = [int(number) for number in digits]
            if values[0] != values[1]:
                return values[0] - values[1]
            left, right = left + len(digits[0]), right + len(digits[1])
        elif any(digits):
            return 1 if digits[0] else -1
        elif one[left : left + 1] != other[right : right + 1]:
            break
        else:
            left, right = left + 1, right + 1
    ends = (text[at] if at < len(text) else 0 for text, at in ((one, left), (other, right)))
    return int.__sub__(*ends)


def _digits(text: bytes, at: int) -> bytes:
    end = at
    while end < len(text) and 48 <= text[end] <= 57:
        end += 1
    return text[at:end]
