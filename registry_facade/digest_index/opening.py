"""From a setting to a digest index."""

from pathlib import Path

from registry_facade.digest_index.base import DigestIndex
from registry_facade.digest_index.redis import RedisIndex
from registry_facade.digest_index.sqlite import SqliteIndex


def digest_index(target: str, *, default: Path) -> DigestIndex:
    """``sqlite:PATH`` or ``redis://HOST:PORT``; nothing means SQLite at ``default``. Raises ValueError."""
    if not target:
        return SqliteIndex(default)
    if target.startswith(("redis://", "rediss://")):
        return RedisIndex(target)
    scheme, separator, path = target.partition(":")
    if scheme != "sqlite" or not separator or not path:
        raise ValueError("accepts sqlite:PATH or redis://HOST:PORT")
    return SqliteIndex(Path(path))
