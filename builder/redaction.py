"""Secrets out of what people read; pure but for reading the secrets' files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from builder.errors import BuildFailed

_SHORTEST = 4
"""Shorter lines of a secret hide more of a log than they protect."""
_MASK = "*****"

Redact = Callable[[str], str]


def redactor(secrets: Iterable[Path]) -> Redact:
    """Masks every line of the files; blocking once, here. What cannot be read is nobody's secret yet."""
    lines: set[str] = set()
    for path in secrets:
        try:
            lines |= {line.strip() for line in path.read_text(errors="replace").splitlines()}
        except OSError:
            continue
    words = sorted((line for line in lines if len(line) >= _SHORTEST), key=len, reverse=True)

    def redact(text: str) -> str:
        for word in words:
            text = text.replace(word, _MASK)
        return text

    return redact


def redacted_failure(error: BuildFailed, redact: Redact) -> BuildFailed:
    return BuildFailed(error.name, redact(error.reason), [redact(line) for line in error.log_tail])
