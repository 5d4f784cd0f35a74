"""Files that every chunk rewrites and that can be told apart inside: three-way merges, pure.

Each merger takes the base's version and the chunks' versions in order; what a chunk *did* is the difference
between its version and the base's. Of two chunks that changed the same record differently the later counts.
"""

from collections.abc import Callable, Mapping, Sequence

from builder.ld_cache import LdCache

Merger = Callable[[bytes, Sequence[bytes]], bytes]
Records = Mapping[str, bytes]


def merge_stanzas(base: bytes, versions: Sequence[bytes]) -> bytes:
    """Paragraphs of ``Field: value`` lines, keyed by Package and Architecture: dpkg's status and the like."""
    merged = _three_way(_stanzas(base), [_stanzas(version) for version in versions])
    return b"".join(merged[key] + b"\n\n" for key in sorted(merged))


def merge_lines(base: bytes, versions: Sequence[bytes]) -> bytes:
    """Lines keyed by what stands before the first colon (all of it, without one), in the order they came."""
    merged = _three_way(_lines(base), [_lines(version) for version in versions])
    return b"".join(line + b"\n" for line in merged.values())


def merge_diversions(base: bytes, versions: Sequence[bytes]) -> bytes:
    """Records of three lines, from, to and the package that diverts, keyed by the first."""
    merged = _three_way(_triples(base), [_triples(version) for version in versions])
    return b"".join(record + b"\n" for record in merged.values())


def merge_groups(base: bytes, versions: Sequence[bytes]) -> bytes:
    """Like lines, and the members that several chunks added to one group are united."""
    records = [_lines(version) for version in versions]
    merged = dict(_three_way(_lines(base), records))
    for key, line in merged.items():
        fields = line.split(b":")
        if len(fields) == 4:
            members = [
                member
                for version in (_lines(base), *records)
                for member in version.get(key, b":::").split(b":")[-1].split(b",")
                if member
            ]
            merged[key] = b":".join([*fields[:3], b",".join(dict.fromkeys(members))])
    return b"".join(line + b"\n" for line in merged.values())


def merge_ld_caches(base: bytes, versions: Sequence[bytes]) -> bytes:
    """The libraries of all caches; the last version as it is where one of them cannot be read."""
    try:
        before = LdCache.parse(base) if base else LdCache(())
        caches = [LdCache.parse(version) for version in versions]
    except ValueError:
        return versions[-1]
    known, in_all = set(before.libraries), set.intersection(*(set(cache.libraries) for cache in caches))
    kept = [one for one in before.libraries if one in in_all]
    added = [one for cache in caches for one in cache.libraries if one not in known]
    return LdCache(tuple(dict.fromkeys([*kept, *added])), caches[-1].generator).dump()


def dpkg_packages(status: bytes) -> Sequence[tuple[str, str, str]]:
    """(name, version, architecture) of what dpkg's status says is installed."""
    return [
        (_field(stanza, b"Package"), _field(stanza, b"Version"), _field(stanza, b"Architecture"))
        for stanza in _stanzas(status).values()
        if _field(stanza, b"Status").endswith(" installed")
    ]


def ids_by_name(data: bytes) -> Mapping[str, str]:
    """Of /etc/passwd or /etc/group: the number that each name stands for."""
    fields = (line.decode(errors="replace").split(":") for line in data.split(b"\n"))
    return {parts[0]: parts[2] for parts in fields if len(parts) > 2}


def _three_way(base: Records, versions: Sequence[Records]) -> Records:
    merged = dict(base)
    for version in versions:
        merged |= {key: record for key, record in version.items() if base.get(key) != record}
        for key in base.keys() - version.keys():
            if merged.get(key) == base[key]:
                del merged[key]
    return merged


def _stanzas(data: bytes) -> Records:
    found: dict[str, bytes] = {}
    for text in data.replace(b"\r\n", b"\n").split(b"\n\n"):
        stanza = text.strip(b"\n")
        if stanza:
            found[f"{_field(stanza, b'Package')}\0{_field(stanza, b'Architecture')}"] = stanza
    return found


def _field(stanza: bytes, name: bytes) -> str:
    for line in stanza.split(b"\n"):
        key, separator, value = line.partition(b":")
        if separator and key == name:
            return value.strip().decode(errors="replace")
    return ""


def _triples(data: bytes) -> Records:
    lines = data.removesuffix(b"\n").split(b"\n")
    triples = [lines[at : at + 3] for at in range(0, len(lines) - 2, 3)]
    return {triple[0].decode(errors="replace"): b"\n".join(triple) for triple in triples}


def _lines(data: bytes) -> Records:
    return {line.partition(b":")[0].decode(errors="replace"): line for line in data.split(b"\n") if line}


MERGERS: Mapping[str, Merger] = {
    "var/lib/dpkg/status": merge_stanzas,
    "var/lib/apt/extended_states": merge_stanzas,
    "etc/passwd": merge_lines,
    "etc/shadow": merge_lines,
    "etc/group": merge_groups,
    "etc/gshadow": merge_groups,
    "etc/ld.so.cache": merge_ld_caches,
    "etc/subuid": merge_lines,
    "etc/subgid": merge_lines,
    "etc/shells": merge_lines,
    "var/lib/dpkg/diversions": merge_diversions,
    "var/lib/dpkg/statoverride": merge_lines,
}
"""By path without a leading slash."""

LAST_WINS = (
    "/var/log/**", "/var/cache/**", "tmp/**", "/run/**", "/var/lib/dpkg/*-old", "/var/lib/dpkg/lock*",
    "/var/lib/dpkg/triggers/*", "/var/lib/apt/lists/**", "/etc/passwd-", "/etc/shadow-", "/etc/group-",
    "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/.pwd.lock",
)  # fmt: skip
"""Traces of package managers that nobody misses: no conflict when several chunks leave them."""
