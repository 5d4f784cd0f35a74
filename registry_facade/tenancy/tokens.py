"""Tokens that the operator gives out, each for some repositories, in a file that may change at any time.

::

    {"<token>, or sha256:<hex of its digest>":
        {"name": "ci", "pull": ["docker.io/*", "workspaces/ws-1"], "push": ["local/ci/*"]}}

A pattern is ``<upstream>/<repository>``; ``*`` stands for any number of characters.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from servicekit.clock import Clock, SystemClock
from servicekit.settings import SettingsInvalid

_log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 1.0
_MIN_CHARS = 16
_HASHED = re.compile(r"^sha256:([0-9a-f]{64})$")
_KEYS = frozenset({"name", "pull", "push"})


@dataclass(frozen=True, slots=True)
class Grants:
    """What a token is for; ``name`` is how logs call it."""

    name: str
    pull: tuple[str, ...] = ()
    push: tuple[str, ...] = ()

    def covers(self, repository: str, *, push: bool = False) -> bool:
        """Whether ``<upstream>/<repository>`` may be read, or written."""
        patterns = self.push if push else (*self.pull, *self.push)
        return any(_matches(repository, pattern) for pattern in patterns)


def _matches(text: str, pattern: str) -> bool:
    return (
        re.fullmatch("".join(".*" if char == "*" else re.escape(char) for char in pattern), text) is not None
    )


def parse_tokens(data: bytes, title: str) -> Mapping[str, Grants]:
    """Grants by the SHA-256 of their token, in hex. Raises SettingsInvalid with all that is wrong. Pure."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise SettingsInvalid([f"{title}: not JSON"]) from error
    if not isinstance(document, dict):
        raise SettingsInvalid([f"{title}: must be an object of tokens"])
    problems: list[str] = []
    found: dict[str, Grants] = {}
    for position, (token, raw) in enumerate(document.items(), 1):
        where = f"{title}: entry {position}"  # never the token itself
        hashed = _HASHED.match(token)
        if hashed is None and len(token) < _MIN_CHARS:
            problems.append(f"{where}: a token has at least {_MIN_CHARS} characters")
        grants = _parse_grants(raw)
        if grants is None:
            problems.append(f'{where}: must have "name", and "pull" or "push" with lists of patterns')
        else:
            found[hashed[1] if hashed else hashlib.sha256(token.encode()).hexdigest()] = grants
    names = [grants.name for grants in found.values()]
    problems += [
        f"{title}: {name!r} is the name of two tokens" for name in set(names) if names.count(name) > 1
    ]
    if problems:
        raise SettingsInvalid(problems)
    return found


def _parse_grants(raw: Any) -> Grants | None:
    if not isinstance(raw, Mapping) or not set(raw) <= _KEYS or not isinstance(raw.get("name"), str):
        return None
    lists = [raw.get(key, []) for key in ("pull", "push")]
    if not raw["name"] or not all(_is_texts(items) for items in lists):
        return None
    return Grants(raw["name"], tuple(lists[0]), tuple(lists[1]))


def _is_texts(items: Any) -> bool:
    return isinstance(items, Sequence) and all(isinstance(item, str) for item in items)


class TokenFile:
    """Read anew when it has changed; while a changed one cannot be used, what was read before holds."""

    def __init__(self, path: Path | None, clock: Clock = SystemClock()) -> None:
        """Blocking. Raises SettingsInvalid."""
        self._path = path
        self._clock = clock
        self._looked_s = clock.monotonic()
        self._stamp: tuple[int, int, int] | None = None
        self._grants: Mapping[str, Grants] = {}
        self._read()

    async def grants(self, token: str) -> Grants | None:
        """A lookup by the digest of what was given: its time tells nothing of the tokens there are."""
        if self._path is not None and self._clock.monotonic() - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = self._clock.monotonic()
            try:
                await asyncio.to_thread(self._read)
            except SettingsInvalid as error:
                _log.warning("tokens_not_reloaded", reason=str(error))
        return self._grants.get(hashlib.sha256(token.encode(errors="replace")).hexdigest())

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            stat = self._path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if stamp == self._stamp:
                return
            data = self._path.read_bytes()
        except OSError as error:
            raise SettingsInvalid([f"{self._path}: {error.strerror or error}"]) from error
        self._grants = parse_tokens(data, str(self._path))
        self._stamp = stamp
