"""Settings from a TOML file, the environment and flags into frozen dataclasses.

A flag wins over ``LAPSTRAKE_<SECTION>_<KEY>``, the variable over the file, the file over the default. All
problems are found before any is reported; unknown keys are problems. A settings class is a frozen
dataclass whose every field was made with `setting`; a nested dataclass is a sub-table (``[facade.local]``,
``LAPSTRAKE_FACADE_LOCAL_<KEY>``). Unknown variables are none of ours to refuse: Kubernetes sets
``<SERVICE>_PORT`` and others for each of its services, ``LAPSTRAKE_FACADE_PORT`` among them.
"""

import dataclasses
import os
import tomllib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from servicekit.secrets import Secret
from servicekit.units import parse_duration, parse_rate, parse_size

S = TypeVar("S")
N = TypeVar("N", int, float)
Parser = Callable[[Any], Any]
_PREFIX = "LAPSTRAKE"
SECTIONS = ("builder", "content", "facade")
"""The tables of a settings file; one file may serve all processes of a node, each reads its own."""


class SettingsInvalid(Exception):
    """One or more settings cannot be used; ``problems`` lists all of them, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    accepts: str
    parse: Parser


def _from_text(parse: Callable[[str], Any]) -> Parser:
    def parsed(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r} is of the wrong kind")  # noqa: TRY004 (reported with the others)
        return parse(str(value))

    return parsed


def _number(cls: type[N]) -> Callable[[str], N]:
    def parsed(text: str) -> N:
        try:
            return cls(text)
        except ValueError:
            raise ValueError(f"{text!r} is not one") from None

    return parsed


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if str(value).lower() not in words:
        raise ValueError(f"{value!r} is neither true nor false")
    return words[str(value).lower()]


def _strings(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{value!r} is not a list of strings")
    return tuple(item.strip() for item in items if item.strip())


def _string_map(value: Any) -> Mapping[str, str]:
    if isinstance(value, str):
        pairs = [item.partition("=") for item in value.split(",") if item.strip()]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError(f"{value!r} has an item without '='")
        value = {key.strip(): item.strip() for key, _, item in pairs}
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError(f"{value!r} is not a table of strings")
    return dict(value)


STRING = _Kind("a string", _from_text(str))
INTEGER = _Kind("a whole number", _from_text(_number(int)))
FLOAT = _Kind("a number", _from_text(_number(float)))
BOOLEAN = _Kind("true or false", _bool)
SIZE = _Kind("a size such as 512MiB", _from_text(parse_size))
RATE = _Kind("a rate such as 20MiB/s", _from_text(parse_rate))
DURATION = _Kind("seconds, or a number with ms, s, m, h, d", _from_text(parse_duration))
PATH = _Kind("a path", _from_text(lambda text: Path(text).expanduser()))
SECRET = _Kind("a string (kept out of all output)", _from_text(Secret))
STRINGS = _Kind("a list of strings (comma-separated in the environment)", _strings)
STRING_MAP = _Kind("a table of strings (NAME=VALUE,... in the environment)", _string_map)


def one_of(*choices: str) -> _Kind:
    """A string out of a closed set."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of them")
        return text

    return _Kind("one of " + ", ".join(choices), _from_text(parse))


def host_port(*, default_port: int) -> _Kind:
    """``HOST:PORT``, ``:PORT`` or ``HOST``, as a (host, port) pair."""

    def parse(text: str) -> tuple[str, int]:
        host, separator, port = text.rpartition(":")
        if not separator:
            host, port = text, str(default_port)
        if not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{port!r} is not a port")
        return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 (":PORT" asks for all interfaces)

    return _Kind("HOST:PORT", _from_text(parse))


def setting(kind: _Kind, default: Any, help_text: str) -> Any:
    """A field of a settings class; ``default`` is of the final type, ``help_text`` one sentence."""
    metadata = {"kind": kind, "help": help_text, "default": default}
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class SettingDescription:
    """One setting as documentation shows it."""

    key: str
    variable: str
    accepts: str
    default: Any
    help_text: str


def describe(cls: type, section: str) -> list[SettingDescription]:
    """Every setting of ``cls`` under ``[section]``, in declaration order."""
    found: list[SettingDescription] = []
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key = f"{section}.{field.name}"
        if "kind" in field.metadata:
            kind: _Kind = field.metadata["kind"]
            help_text = field.metadata["help"]
            found.append(
                SettingDescription(key, _variable(key), kind.accepts, field.metadata["default"], help_text)
            )
        else:
            found += describe(hints[field.name], key)
    return found


def load(
    cls: type[S],
    section: str,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] = types.MappingProxyType({}),
) -> S:
    """The settings of ``[section]``; blocking.

    ``flags`` maps field names (``local.enabled`` for nested ones) to given values; None means not given.
    Raises SettingsInvalid with every problem at once.
    """
    problems: list[str] = []
    table = _read_file(file, section, problems)
    loader = _Loader(os.environ if environ is None else environ, flags, problems)  # noqa: TID251 (the one place)
    built = loader.build(cls, section, table, flag_prefix="")
    if problems:
        raise SettingsInvalid(problems)
    return cast("S", built)


def _variable(key: str) -> str:
    return f"{_PREFIX}_{key}".replace(".", "_").replace("-", "_").upper()


def _read_file(file: Path | None, section: str, problems: list[str]) -> Mapping[str, Any]:
    if file is None:
        return {}
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{file}: {getattr(error, 'strerror', None) or error}")
        return {}
    known = {*SECTIONS, section}
    problems += [
        f"{file}: {key}: unknown section; known are {', '.join(sorted(known))}"
        for key in document.keys() - known
    ]
    table = document.get(section, {})
    if not isinstance(table, Mapping):
        problems.append(f"{section}: must be a table")
        return {}
    return table


@dataclasses.dataclass(frozen=True, slots=True)
class _Loader:
    environ: Mapping[str, str]
    flags: Mapping[str, Any]
    problems: list[str]

    def build(self, cls: type, section: str, table: Mapping[str, Any], *, flag_prefix: str) -> Any:
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        self.problems.extend(
            f"{section}.{key}: unknown setting; known are {', '.join(sorted(fields))}"
            for key in table
            if key.replace("-", "_") not in fields
        )
        normal = {key.replace("-", "_"): value for key, value in table.items()}
        for name, field in fields.items():
            key = f"{section}.{name}"
            if "kind" not in field.metadata:
                nested = normal.get(name, {})
                if not isinstance(nested, Mapping):
                    self.problems.append(f"{key}: must be a table")
                    nested = {}
                values[name] = self.build(hints[name], key, nested, flag_prefix=f"{flag_prefix}{name}.")
            else:
                values[name] = self._value(key, field, normal, self.flags.get(flag_prefix + name))
        return None if self.problems else cls(**values)

    def _value(self, key: str, field: "dataclasses.Field[Any]", table: Mapping[str, Any], flag: Any) -> Any:
        kind: _Kind = field.metadata["kind"]
        variable = _variable(key)
        if flag is not None:
            origin, raw = f"--{field.name.replace('_', '-')}", flag
        elif variable in self.environ:
            origin, raw = variable, self.environ[variable]
        elif field.name in table:
            origin, raw = key, table[field.name]
        else:
            return field.metadata["default"]
        try:
            return kind.parse(raw)
        except ValueError as error:
            shown = "the given value cannot be used" if kind is SECRET else error
            self.problems.append(f"{origin}: {shown}; accepts {kind.accepts}")
            return None
