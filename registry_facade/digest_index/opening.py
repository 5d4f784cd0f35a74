"""From a setting to a digest index."""

from pathlib import Path

from registry_facade.digest_index.base import DigestIndex
from registry_facade.digest_index.sqlite import SqliteIndex
from servicekit.secrets import Secret

INDEX_ACCEPTS = "accepts sqlite:PATH or redis://HOST:PORT[/DB] (its password is a setting of its own)"


def is_digest_index(target: str) -> bool:
    """Whether `digest_index` takes it. A URL that holds a password is refused: settings are shown."""
    if target.startswith(("redis://", "rediss://")):
        return "@" not in target
    return not target or (target.startswith("sqlite:") and target != "sqlite:")


def digest_index(target: str, *, default: Path, password: Secret) -> DigestIndex:
    """For a ``target`` that `is_digest_index`; nothing means SQLite at ``default``."""
    if target.startswith(("redis://", "rediss://")):
        from registry_facade.digest_index.redis import RedisIndex  # noqa: PLC0415 (a client that few need)

        return RedisIndex(target, password)
    return SqliteIndex(Path(target.removeprefix("sqlite:")) if target else default)
