"""Changes to an image's environment: set, append, prepend, remove. Pure.

An added image asks for changes by variables of its own: ``LAPSTRAKE_ENV_SET_X``, ``LAPSTRAKE_ENV_APPEND_X``
(goes behind) and ``LAPSTRAKE_ENV_PREPEND_X`` (goes in front). Gitpod's ``GITPOD_ENV_APPEND_X`` puts in
front and ``GITPOD_ENV_PREPEND_X`` behind, and images in the field rely on that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Action = Literal["set", "append", "prepend", "remove"]
_OWN: Mapping[str, Action] = {
    "LAPSTRAKE_ENV_SET_": "set",
    "LAPSTRAKE_ENV_APPEND_": "append",
    "LAPSTRAKE_ENV_PREPEND_": "prepend",
}
_GITPOD: Mapping[str, Action] = {
    "GITPOD_ENV_SET_": "set",
    "GITPOD_ENV_APPEND_": "prepend",
    "GITPOD_ENV_PREPEND_": "append",
}


@dataclass(frozen=True, slots=True)
class EnvEdit:
    """``separator`` stands between old and new value where both are there."""

    name: str
    action: Action
    value: str = ""
    separator: str = ""

    @classmethod
    def parse(cls, name: str, raw: Any) -> "EnvEdit | None":
        """From an image spec; None when it is not understood. ``:`` joins unless told otherwise."""
        if not name or "=" in name:
            return None
        match raw:
            case str(value):
                return cls(name, "set", value)
            case None:
                return cls(name, "remove")
            case {"set": str(value), **rest} if not rest:
                return cls(name, "set", value)
            case {"append": str(value), **rest} if set(rest) <= {"separator"}:
                return cls(name, "append", value, str(rest.get("separator", ":")))
            case {"prepend": str(value), **rest} if set(rest) <= {"separator"}:
                return cls(name, "prepend", value, str(rest.get("separator", ":")))
        return None


def edits_asked_by(env: Mapping[str, str], *, gitpod_compatible: bool) -> list[EnvEdit]:
    """What an added image's environment asks for; all else in it is its own affair."""
    prefixes = {**_OWN, **(_GITPOD if gitpod_compatible else {})}
    found = []
    for variable, value in env.items():
        for prefix, action in prefixes.items():
            name = variable.removeprefix(prefix)
            if name not in {variable, ""} and (value or action == "set"):
                found.append(EnvEdit(name, action, value))
    return found


def apply_env(env: Mapping[str, str], edits: Iterable[EnvEdit]) -> Mapping[str, str]:
    """The environment after ``edits``, in its old order; new names come last."""
    changed = dict(env)
    for edit in edits:
        current = changed.get(edit.name, "")
        glue = edit.separator if current else ""
        match edit.action:
            case "set":
                changed[edit.name] = edit.value
            case "append":
                changed[edit.name] = f"{current}{glue}{edit.value}"
            case "prepend":
                changed[edit.name] = f"{edit.value}{glue}{current}"
            case "remove":
                changed.pop(edit.name, None)
    return changed
