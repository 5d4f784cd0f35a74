"""YAML as a person wrote it: every scalar a string, every node with its line.

Values are never guessed at, so ``PYTHON_VERSION: 3.10`` stays ``3.10``. Problems are collected, not raised,
for one run is to show all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 1 << 20
_MAX_ALIASES = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """``line`` counts from 1; 0 speaks of the file as a whole."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass
class Problems:
    """Errors stop a project from being used, warnings do not."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


class Value:
    """A node of one file. Reading it as what it is not reports a problem and gives something empty."""

    def __init__(self, node: Any, file: str, problems: Problems) -> None:
        self._node = node
        self._file = file
        self._problems = problems

    @property
    def line(self) -> int:
        return int(self._node.start_mark.line) + 1

    def error(self, message: str) -> None:
        self._problems.errors.append(Problem(self._file, self.line, message))

    def warn(self, message: str) -> None:
        self._problems.warnings.append(Problem(self._file, self.line, message))

    @property
    def _is_absent(self) -> bool:
        """``key:`` with nothing after it."""
        return isinstance(self._node, yaml.ScalarNode) and self._node.value == "" and self._node.style is None

    def fields(self, known: Sequence[str], what: str, *, strict: bool = False) -> Mapping[str, "Value"]:
        """The entries of a mapping; unknown keys are warned of, or errors when ``strict``."""
        found: dict[str, Value] = {}
        for key, value in self.entries(what).items():
            if key in known:
                found[key] = value
            else:
                report = value.error if strict else value.warn
                report(f"unknown key {key!r} in {what}; known are {', '.join(known)}")
        return found

    def entries(self, what: str) -> Mapping[str, "Value"]:
        if self._is_absent:
            return {}
        if not isinstance(self._node, yaml.MappingNode):
            self.error(f"{what} must be a mapping")
            return {}
        found: dict[str, Value] = {}
        for key, node in self._node.value:
            value = Value(node, self._file, self._problems)
            if not isinstance(key, yaml.ScalarNode):
                value.error(f"keys of {what} must be plain words")
            elif key.value in found:
                value.error(f"{key.value!r} appears twice in {what}")
            else:
                found[key.value] = value
        return found

    def items(self, what: str) -> Sequence["Value"]:
        if self._is_absent:
            return ()
        if not isinstance(self._node, yaml.SequenceNode):
            self.error(f"{what} must be a list")
            return ()
        return [Value(node, self._file, self._problems) for node in self._node.value]

    def text(self, what: str) -> str:
        if not isinstance(self._node, yaml.ScalarNode):
            self.error(f"{what} must be a string")
            return ""
        return str(self._node.value)

    def texts(self, what: str) -> tuple[str, ...]:
        return tuple(item.text(f"an item of {what}") for item in self.items(what))

    def text_map(self, what: str) -> Mapping[str, str]:
        return {key: value.text(f"{what} {key!r}") for key, value in self.entries(what).items()}

    def flag(self, what: str) -> bool:
        word = self.text(what).lower()
        if word not in {"true", "false", "yes", "no", "on", "off"}:
            self.error(f"{what} must be true or false")
        return word in {"true", "yes", "on"}


def read_yaml(path: Path, shown: str, problems: Problems) -> Value | None:
    """The document in ``path``; None when it is empty or cannot be read, which is then a problem."""
    try:
        text = _bounded_text(path)
        node: Any = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        problems.errors.append(Problem(shown, line, error.problem or "not YAML"))
        return None
    except OSError as error:
        problems.errors.append(Problem(shown, 0, error.strerror or "cannot be read"))
        return None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.errors.append(Problem(shown, 0, str(error).splitlines()[0]))
        return None
    return None if node is None else Value(node, shown, problems)


def _bounded_text(path: Path) -> str:
    """Aliases let a small file stand for an endless one; readers go a fixed depth, so few are harmless."""
    data = path.read_bytes()
    if len(data) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    text = data.decode()
    aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.BaseLoader))
    if aliases > _MAX_ALIASES:
        raise ValueError(f"more than {_MAX_ALIASES} aliases")
    return text
