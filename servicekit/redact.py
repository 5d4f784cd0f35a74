"""URLs made fit for logs and messages.

Query values are kept by allow-list, because signed URLs invent new secret parameters faster than a
deny-list can follow.
"""

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SHOWN_QUERY_KEYS = frozenset(
    {"ns", "n", "last", "digest", "from", "mount", "scope", "service", "artifactType"}
)


def redact_url(url: str) -> str:
    """``url`` without user information and with unknown query values replaced by ``***``."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"  # what cannot be taken apart cannot be shown in part
    host = parts.netloc.rpartition("@")[2]
    query = [
        (key, value if key in _SHOWN_QUERY_KEYS else "***")
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(query, safe="*:/"), ""))
