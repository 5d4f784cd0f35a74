"""A JSON object taken apart into values of the right kind; all problems are told at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from content.errors import InvalidInput

_MAX_ITEMS = 1000


class InvalidRequest(InvalidInput):
    """The body of a request cannot be used; ``problems`` are one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(slots=True)
class Fields:
    """Takes a JSON object apart; `done` raises InvalidRequest with everything that was wrong."""

    body: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.take(name, default)
        if value is not default and (not isinstance(value, str) or not value or "\0" in value):
            self.problems.append(f"{name}: must be a string that is not empty")
            return default
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.take(name, [])
        if (
            not isinstance(value, list)
            or len(value) > _MAX_ITEMS
            or not all(isinstance(item, str) and "\0" not in item for item in value)
        ):
            self.problems.append(f"{name}: must be a list of at most {_MAX_ITEMS} strings")
            return ()
        return tuple(value)

    def flag(self, name: str) -> bool:
        value = self.take(name, default=False)
        if not isinstance(value, bool):
            self.problems.append(f"{name}: must be true or false")
            return False
        return value

    def number(self, name: str) -> int | None:
        value = self.take(name, None)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63
        ):
            self.problems.append(f"{name}: must be a whole number of at least 0")
            return None
        return value

    def choice(self, name: str, *choices: str) -> str:
        value = self.take(name, choices[0])
        if value not in choices:
            self.problems.append(f"{name}: must be one of {', '.join(choices)}")
            return choices[0]
        return str(value)

    def take(self, name: str, default: Any) -> Any:
        """The raw value, which the caller judges."""
        self._known.add(name)
        return self.body.get(name, default)

    def done(self) -> None:
        self.problems += [f"{name}: unknown field" for name in self.body if name not in self._known]
        if self.problems:
            raise InvalidRequest(self.problems)
