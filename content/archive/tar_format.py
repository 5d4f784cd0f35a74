"""The bytes of tar: ustar headers and pax records, built and taken apart (POSIX.1-2017, pax, "ustar
Interchange Format"; GNU tar manual, appendix on sparse formats). Pure; names are bytes.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)

REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
CONTIGUOUS, OLD_REGULAR = b"7", b"\0"
PAX_NEXT, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK, GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"

_MAX_OCTAL_SIZE = 0o77777777777
_MAX_OCTAL_ID = 0o7777777
_PAX_NAME = b"././@PaxHeader".ljust(100, b"\0")
_TAIL = bytes(12)
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
"""name, mode, uid, gid, size, mtime, checksum, kind, link, magic, (owner's names), device numbers, prefix."""


class BadHeader(ValueError):
    """A header block or record that cannot be what it claims; says why."""


class Member(NamedTuple):
    """One archive member as its headers describe it. ``size_bytes`` is what follows in the archive;
    ``sparse`` holds (offset, length) of the data of a sparse file of ``real_size_bytes``.
    """

    path: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Sequence[tuple[bytes, bytes]] = ()
    real_size_bytes: int | None = None
    sparse: Sequence[tuple[int, int]] | None = None
    pax: Mapping[bytes, bytes] = MappingProxyType({})


def padding(size_bytes: int) -> int:
    """Zero bytes that fill the last block."""
    return -size_bytes % BLOCK


def pax_record(key: bytes, value: bytes) -> bytes:
    """``LENGTH key=value`` and a newline, where LENGTH counts its own digits."""
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    if len(str(length)) != len(str(body)):
        length = body + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def pax_block(records: bytes) -> bytes:
    """An extended header for the next member: header block, records, padding."""
    return _pax_header(len(records)) + records + bytes(padding(len(records)))


@lru_cache(maxsize=4096)
def _pax_header(length: int) -> bytes:
    return _ustar(_PAX_NAME, 0o644, 0, 0, b"%011o\0" % length, 0, PAX_NEXT, bytes(100), b"", b"")


def _ustar(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: bytes,
    mtime_s: int,
    kind: bytes,
    link: bytes,
    devices: bytes,
    prefix: bytes,
) -> bytes:
    block = b"%b%07o\0%07o\0%07o\0%b%011o\0        %b%bustar\00000%b%b%b%b" % (
        name,
        mode,
        uid,
        gid,
        size,
        mtime_s,
        kind,
        link,
        bytes(64),
        devices or bytes(16),
        prefix.ljust(155, b"\0"),
        _TAIL,
    )
    return b"%b%06o\0 %b" % (block[:148], _sum(block), block[156:])


def _sum(block: bytes) -> int:
    """Of its bytes; those of ASCII stay below Adler-32's modulus, and zlib adds 20 times faster."""
    return (zlib.adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)


def member_headers(member: Member) -> bytes:
    """All header blocks of ``member``, pax records included where ustar fields do not suffice."""
    records: list[bytes] = []
    name, prefix = member.path, b""
    if member.sparse is not None:
        name = _sparse_name(member, records)
    elif len(name) > 100 or not name.isascii():
        name, prefix, needs_path = _split(name)
        if needs_path:
            records.append(pax_record(b"path", member.path))
    link = member.link
    if len(link) > 100 or not link.isascii():
        records.append(pax_record(b"linkpath", link))
    mtime_s, fraction_ns = divmod(member.mtime_ns, 1_000_000_000)
    if fraction_ns or not 0 <= mtime_s <= _MAX_OCTAL_SIZE:
        records.append(_mtime(member.mtime_ns))
        mtime_s = min(max(mtime_s, 0), _MAX_OCTAL_SIZE)
    for key, value in member.xattrs:
        escaped = key.replace(b"%", b"%25").replace(b"=", b"%3D")
        records.append(pax_record(b"SCHILY.xattr." + escaped, value))
    header = _ustar(
        name[:100].ljust(100, b"\0"),
        member.mode & 0o7777,
        _id_field(b"uid", member.uid, records),
        _id_field(b"gid", member.gid, records),
        _size_field(member, records),
        mtime_s,
        member.kind,
        link[:100].ljust(100, b"\0"),
        b"%07o\0%07o\0" % member.device if member.device != (0, 0) else b"",
        prefix,
    )
    if not records:
        return header
    if not _is_utf8(member):
        records.insert(0, pax_record(b"hdrcharset", b"BINARY"))
    return pax_block(b"".join(records)) + header


def _sparse_name(member: Member, records: list[bytes]) -> bytes:
    """What readers that know no sparse files see; the real name goes in a record."""
    records += [
        pax_record(b"GNU.sparse.major", b"1"),
        pax_record(b"GNU.sparse.minor", b"0"),
        pax_record(b"GNU.sparse.name", member.path),
        pax_record(b"GNU.sparse.realsize", b"%d" % (member.real_size_bytes or 0)),
    ]
    directory, _, base = member.path.rpartition(b"/")
    return b"%b/GNUSparseFile.0/%b" % (directory or b".", base)


def _id_field(key: bytes, number: int, records: list[bytes]) -> int:
    if number <= _MAX_OCTAL_ID:
        return number
    records.append(pax_record(key, b"%d" % number))
    return 0


def _size_field(member: Member, records: list[bytes]) -> bytes:
    if member.size_bytes <= _MAX_OCTAL_SIZE:
        return b"%011o\0" % member.size_bytes
    if member.sparse is not None:  # readers take a pax size of a sparse member for its real size
        return b"\x80" + member.size_bytes.to_bytes(11, "big")
    records.append(pax_record(b"size", b"%d" % member.size_bytes))
    return b"%011o\0" % 0


def _is_utf8(member: Member) -> bool:
    if member.path.isascii() and member.link.isascii():
        return True
    try:
        (member.path + member.link).decode()
    except UnicodeDecodeError:
        return False
    return True


def _mtime(mtime_ns: int) -> bytes:
    if 10**18 <= mtime_ns < 10**19:  # the record of any time since 2001 is 30 bytes long
        return b"30 mtime=%d.%09d\n" % divmod(mtime_ns, 1_000_000_000)
    sign = b"-" if mtime_ns < 0 else b""
    seconds, fraction = divmod(abs(mtime_ns), 1_000_000_000)
    return pax_record(b"mtime", b"%b%d.%09d" % (sign, seconds, fraction))


def _split(path: bytes) -> tuple[bytes, bytes, bool]:
    """(name, prefix, whether a pax path record is needed)."""
    if path.isascii() and len(path) <= 256:
        cut = path.rfind(b"/", 0, 156)
        if cut > 0 and 0 < len(path) - cut - 1 <= 100:
            return path[cut + 1 :], path[:cut], False
    return bytes(byte if byte < 128 else 63 for byte in path[-100:]), b"", True


def parse_number(field_bytes: bytes) -> int:
    """Octal text, or GNU base-256 when the high bit is set. Raises BadHeader."""
    if field_bytes[0] & 0x80:
        value = int.from_bytes(field_bytes, "big")
        bits = 8 * len(field_bytes)
        return value - (1 << bits) if field_bytes[0] == 0xFF else value & ~(1 << (bits - 1))
    text = field_bytes.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise BadHeader(f"{field_bytes!r} is not an octal number") from None


_recurring = lru_cache(maxsize=4096)(parse_number)
"""For owners and modes, of which there are few."""


@lru_cache(maxsize=1024)  # those of most members are alike
def extension_size(block: bytes) -> int:
    """The bytes of records that follow the header block of an extended header. Raises BadHeader."""
    check_sum(block)
    return parse_number(block[124:136])


def check_sum(block: bytes) -> None:
    """Raises BadHeader unless the block's checksum is right (unsigned, or signed as old tars had it)."""
    field_bytes = block[148:156]
    stored = parse_number(field_bytes)
    unsigned = _sum(block) - sum(field_bytes) + 8 * 32  # the field itself counts as blanks
    if stored != unsigned and stored != unsigned - 256 * sum(
        byte > 127 for byte in block[:148] + block[156:]
    ):
        raise BadHeader("header checksum does not match")


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header. Raises BadHeader."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        if data[at] == 0:  # some writers pad inside the declared size
            break
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise BadHeader("a pax record has no length")
        end = at + int(digits)
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise BadHeader("a pax record is longer or shorter than it says")
        key, separator, value = data[space + 1 : end - 1].partition(b"=")
        if not separator or not key:
            raise BadHeader("a pax record has no '='")
        records[key] = value
        at = end
    return records


def parse_time_ns(text: bytes) -> int:
    """Decimal seconds of any precision, truncated to nanoseconds. Raises BadHeader."""
    whole, _, fraction = text.partition(b".")
    if len(fraction) == 9 and len(whole) <= 18 and (digits := whole + fraction).isdigit():  # as we write it
        return int(digits)
    negative = text.startswith(b"-")
    whole, _, fraction = text.lstrip(b"+-").partition(b".")
    if not (whole or fraction) or not (whole + fraction).isdigit() or len(whole) > 18:
        raise BadHeader(f"{text[:40]!r} is not a time")
    value = int(whole or b"0") * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -value if negative else value


def _decimal(pax: Mapping[bytes, bytes], key: bytes, default: int) -> int:
    if key not in pax:
        return default
    if not pax[key].isdigit() or len(pax[key]) > 19:
        raise BadHeader(f"pax {key.decode()} is not a number")
    return int(pax[key])


def _text(field_bytes: bytes) -> bytes:
    """A field up to its first NUL."""
    return field_bytes[:end] if (end := field_bytes.find(0)) >= 0 else field_bytes


def parse_member(block: bytes, pax: Mapping[bytes, bytes]) -> Member:
    """The member that ``block`` begins, with the extended records ``pax`` over it. Raises BadHeader."""
    fields = _FIELDS.unpack(block)
    name, mode, uid, gid, size, mtime_s, _, kind, link, magic, _, _, major, minor, prefix = fields
    path = pax.get(b"GNU.sparse.name") or pax.get(b"path")
    if not path:
        path = _text(name)
        if magic[:6] == b"ustar\0" and prefix[0]:
            path = _text(prefix) + b"/" + path
    if kind in {OLD_REGULAR, CONTIGUOUS}:
        kind = REGULAR
    if kind == REGULAR and path.endswith(b"/"):
        kind = DIRECTORY
    size_bytes = parse_number(size)
    if b"GNU.sparse.major" not in pax:
        size_bytes = _decimal(pax, b"size", size_bytes)
    if size_bytes < 0:
        raise BadHeader("negative size")
    mtime = pax.get(b"mtime")
    return Member(
        path,
        kind,
        _recurring(mode) & 0o7777,
        _decimal(pax, b"uid", _recurring(uid)),
        _decimal(pax, b"gid", _recurring(gid)),
        size_bytes if kind in {REGULAR, GNU_SPARSE} else 0,
        parse_time_ns(mtime) if mtime is not None else parse_number(mtime_s) * 1_000_000_000,
        pax.get(b"linkpath", _text(link)),
        (parse_number(major), parse_number(minor)) if kind in {CHAR, BLOCK_DEVICE} else (0, 0),
        _xattrs(pax) if len(pax) > 1 or mtime is None else (),
        None,
        None,
        pax,
    )


def _xattrs(pax: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(
        (key[13:].replace(b"%3D", b"=").replace(b"%25", b"%"), value)
        for key, value in pax.items()
        if key.startswith(b"SCHILY.xattr.")
    )
