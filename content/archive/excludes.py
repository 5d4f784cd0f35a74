"""What a backup leaves out on purpose: patterns as in .gitignore."""

import re
from collections.abc import Sequence

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

from content.errors import InvalidInput


class InvalidPattern(InvalidInput):
    def __init__(self, pattern: str) -> None:
        super().__init__(f"invalid exclude pattern {pattern!r}: write one as in .gitignore")


class Excludes:
    """Decides by path; the last pattern that matches wins, ``!`` takes back. Raises InvalidPattern."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        for pattern in patterns:
            try:
                GitIgnoreSpec.from_lines([pattern])
            except (GitIgnorePatternError, ValueError, re.error) as error:
                raise InvalidPattern(pattern) from error
        self.patterns = tuple(patterns)
        self._spec = GitIgnoreSpec.from_lines(patterns) if patterns else None

    def match(self, path: str, *, is_directory: bool) -> bool:
        """Whether ``path`` (relative, no leading slash) is left out, with all below it."""
        return self._spec is not None and self._spec.match_file(path + "/" if is_directory else path)
