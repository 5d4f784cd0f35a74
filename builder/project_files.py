"""Reading a project's files. Blocking; all problems are found before any is reported."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import pathspec

from builder.assertions import Assertion, AssertionInvalid
from builder.errors import ProjectInvalid
from builder.names import chunked_prefix, name_problem
from builder.project import (
    Chunk,
    ChunkTest,
    Combination,
    Compression,
    NamedContext,
    Options,
    Order,
    Project,
)
from builder.yaml_source import Problem, Problems, Value, read_yaml
from ocikit.descriptor import Platform
from ocikit.env_merge import EnvAction
from ocikit.reference import is_tag

E = TypeVar("E", bound=StrEnum)

PROJECT_FILE = "dazzle.yaml"
_CHUNK_FILE = "chunk.yaml"
_ENV_NAME = re.compile(r"^[^=\s]+$")


def load_project(root: Path) -> Project:
    """Raises ProjectInvalid with every problem, one line each."""
    problems = Problems()
    if not root.is_dir():
        raise ProjectInvalid([f"{root}: is not a directory"])
    chunks, ignored = _Chunks(root, problems), frozenset[str]()
    base = chunks.base()
    units = chunks.all()
    document = read_yaml(root / PROJECT_FILE, PROJECT_FILE, problems)
    combinations: Mapping[str, Combination] = {}
    env_actions: Mapping[str, EnvAction] = {}
    options = Options()
    if document is not None:
        fields = document.fields(("combiner", "ignore", "lapstrake"), PROJECT_FILE)
        if "ignore" in fields:
            ignored = _ignored(fields["ignore"], units)
        if "combiner" in fields:
            combiner = fields["combiner"].fields(("combinations", "envvars"), "combiner")
            if "combinations" in combiner:
                combinations = _Combinations(combiner["combinations"], units, ignored).resolved()
            if "envvars" in combiner:
                env_actions = _env_actions(combiner["envvars"])
        if "lapstrake" in fields:
            options = _options(fields["lapstrake"], root)
    chunks.report_orphan_tests()
    if problems.errors:
        raise ProjectInvalid([str(problem) for problem in problems.errors])
    kept = {name: unit for name, unit in units.items() if name not in ignored}
    warnings = tuple(str(problem) for problem in problems.warnings)
    return Project(root, base, kept, combinations, env_actions, ignored, options, warnings)


class _Chunks:
    """base/, chunks/ and tests/."""

    def __init__(self, root: Path, problems: Problems) -> None:
        self._root = root
        self._problems = problems
        self._used_tests: set[str] = set()

    def _error(self, path: Path, message: str) -> None:
        self._problems.errors.append(Problem(str(path.relative_to(self._root)), 0, message))

    def base(self) -> Chunk:
        directory = self._root / "base"
        if not directory.is_dir():
            self._error(directory, "is missing; it holds the Dockerfile of the base image")
            return Chunk("base", directory)
        units = self._units(directory, "base")
        if len(units) > 1:
            self._error(directory / _CHUNK_FILE, "the base has more than one variant")
        return replace(units[0], name="base") if units else Chunk("base", directory)

    def all(self) -> Mapping[str, Chunk]:
        directory = self._root / "chunks"
        if not directory.is_dir():
            self._error(directory, "is missing; it holds one directory for each chunk")
            return {}
        units = [
            unit
            for entry in sorted(directory.iterdir())
            if entry.is_dir() and not entry.name.startswith(("_", "."))
            for unit in self._units(entry, entry.name)
        ]
        owners: dict[str, str] = {"base--": "base"}
        for unit in units:
            reason = name_problem(unit.name)
            owner = owners.setdefault(chunked_prefix(unit.name), unit.name)
            if owner != unit.name or unit.name == "base":
                reason = f"{unit.name!r} would have the tags of {owner!r}"
            if reason is not None:
                self._error(unit.directory, reason)
        return {unit.name: unit for unit in units}

    def _units(self, directory: Path, name: str) -> Sequence[Chunk]:
        tests = self._tests(name)
        plain = Chunk(name, directory, tests=tests, control_files=(_CHUNK_FILE, "Dockerfile"))
        path = directory / _CHUNK_FILE
        units: Sequence[Chunk] = [plain]
        if path.exists():
            document = read_yaml(path, str(path.relative_to(self._root)), self._problems)
            fields = document.fields(("variants",), _CHUNK_FILE) if document is not None else {}
            if "variants" in fields:
                units = self._variants(plain, fields["variants"])
        for unit in units:
            if not (directory / unit.dockerfile).is_file():
                self._error(directory / unit.dockerfile, f"is missing; {unit.name} is built by it")
        return units

    def _variants(self, plain: Chunk, variants: Value) -> Sequence[Chunk]:
        units: list[Chunk] = []
        for item in variants.items("variants"):
            fields = item.fields(("name", "args", "dockerfile"), "a variant")
            variant = fields["name"].text("name") if "name" in fields else ""
            if not variant:
                item.error("a variant needs a name")
                continue
            if any(unit.variant == variant for unit in units):
                item.error(f"variant {variant!r} appears twice")
            args = fields["args"].text_map("args") if "args" in fields else {}
            dockerfile = fields["dockerfile"].text("dockerfile") if "dockerfile" in fields else "Dockerfile"
            units.append(
                replace(plain, name=f"{plain.name}:{variant}", args=dict(args), dockerfile=dockerfile)
            )
        control = (*plain.control_files, *(unit.dockerfile for unit in units))
        return [replace(unit, control_files=tuple(dict.fromkeys(control))) for unit in units]

    def _tests(self, name: str) -> tuple[ChunkTest, ...]:
        path = self._root / "tests" / f"{name}.yaml"
        self._used_tests.add(path.name)
        if not path.exists():
            return ()
        document = read_yaml(path, str(path.relative_to(self._root)), self._problems)
        return tuple(_test(item) for item in document.items("tests")) if document is not None else ()

    def report_orphan_tests(self) -> None:
        for path in sorted((self._root / "tests").glob("*.yaml")):
            if path.name not in self._used_tests:
                shown = str(path.relative_to(self._root))
                self._problems.warnings.append(
                    Problem(shown, 1, f"no chunk {path.stem!r}: these tests are never run")
                )
                read_yaml(path, shown, self._problems)


def _test(item: Value) -> ChunkTest:
    known = ("desc", "command", "assert", "entrypoint", "env", "user", "skip")
    fields = item.fields(known, "a test", strict=True)
    for needed in ("desc", "command", "assert"):
        if needed not in fields:
            item.error(f"a test needs {needed!r}")
    env: dict[str, str] = {}
    for entry in fields["env"].items("env") if "env" in fields else ():
        key, separator, value = entry.text("an item of env").partition("=")
        if not separator:
            entry.error(f"{key!r} is not NAME=VALUE")
        env[key] = value
    return ChunkTest(
        fields["desc"].text("desc") if "desc" in fields else "",
        fields["command"].texts("command") if "command" in fields else (),
        _assertions(fields["assert"]) if "assert" in fields else (),
        fields["entrypoint"].texts("entrypoint") if "entrypoint" in fields else None,
        env,
        fields["user"].text("user") if "user" in fields else "",
        fields["skip"].flag("skip") if "skip" in fields else False,
    )


def _assertions(value: Value) -> tuple[Assertion, ...]:
    found: list[Assertion] = []
    for item in value.items("assert"):
        try:
            found.append(Assertion.parse(item.text("an assertion")))
        except AssertionInvalid as error:
            item.error(str(error))
    return tuple(found)


def _ignored(value: Value, units: Mapping[str, Chunk]) -> frozenset[str]:
    """Patterns as in .gitignore, matched against names with their variant, as dazzle has it."""
    spec = pathspec.PathSpec.from_lines("gitignore", value.texts("ignore"))
    return frozenset(name for name in units if spec.match_file(name))


class _Combinations:
    def __init__(self, value: Value, units: Mapping[str, Chunk], ignored: frozenset[str]) -> None:
        self._units = units
        self._ignored = ignored
        self._own: dict[str, tuple[Value, Mapping[str, Value]]] = {}
        self._known: dict[str, Sequence[str]] = {}
        for item in value.items("combinations"):
            fields = item.fields(("name", "chunks", "ref"), "a combination")
            name = fields["name"].text("name") if "name" in fields else ""
            if not is_tag(name):
                item.error(f"a combination needs a name that can be an image's tag, not {name!r}")
            elif name in self._own:
                item.error(f"combination {name!r} appears twice")
            else:
                self._own[name] = (item, fields)

    def resolved(self) -> Mapping[str, Combination]:
        for name in self._own:
            self._check(name)
        return {name: Combination(name, tuple(self._chunks(name, ()))) for name in sorted(self._own)}

    def _check(self, name: str) -> None:
        _, fields = self._own[name]
        for item in fields["chunks"].items("chunks") if "chunks" in fields else ():
            chunk = item.text("a chunk")
            if chunk in self._ignored:
                item.warn(f"combination {name!r} uses {chunk!r}, which is ignored: it cannot be combined")
            elif chunk not in self._units:
                variants = [unit for unit in self._units if unit.startswith(f"{chunk}:")]
                hint = f"; it has the variants {', '.join(variants)}" if variants else ""
                item.error(f"combination {name!r} uses the unknown chunk {chunk!r}{hint}")
        for item in fields["ref"].items("ref") if "ref" in fields else ():
            if item.text("a ref") not in self._own:
                item.error(f"combination {name!r} refers to the unknown {item.text('a ref')!r}")

    def _chunks(self, name: str, path: tuple[str, ...]) -> Sequence[str]:
        """Each chunk once, and each combination followed once, however often it is referred to."""
        item, fields = self._own[name]
        if name in path:
            item.error(f"combinations refer to each other in a circle: {' -> '.join((*path, name))}")
            return ()
        if name not in self._known:
            refs = fields["ref"].texts("ref") if "ref" in fields else ()
            inherited = [
                chunk for ref in refs if ref in self._own for chunk in self._chunks(ref, (*path, name))
            ]
            own = fields["chunks"].texts("chunks") if "chunks" in fields else ()
            self._known[name] = tuple(dict.fromkeys([*inherited, *own]))
        return self._known[name]


def _env_actions(value: Value) -> Mapping[str, EnvAction]:
    actions: dict[str, EnvAction] = {}
    for item in value.items("envvars"):
        fields = item.fields(("name", "action"), "an item of envvars")
        name = fields["name"].text("name") if "name" in fields else ""
        word = fields["action"].text("action") if "action" in fields else EnvAction.USE_FIRST
        if not _ENV_NAME.match(name):
            item.error(f"{name!r} cannot be the name of a variable")
        if word not in list(EnvAction):
            item.error(f"{word!r} is no action; there are {', '.join(EnvAction)}")
            continue
        actions[name] = EnvAction(word)
    return actions


def _options(value: Value, root: Path) -> Options:
    known = ("order", "compression", "contexts", "allow-conflicts", "platforms")
    fields = value.fields(known, "lapstrake", strict=True)
    options = Options()
    if "order" in fields:
        options = replace(options, order=_choice(fields["order"], "order", Order, options.order))
    if "compression" in fields:
        chosen = _choice(fields["compression"], "compression", Compression, options.compression)
        options = replace(options, compression=chosen)
    if "allow-conflicts" in fields:
        options = replace(options, allowed_conflicts=fields["allow-conflicts"].texts("allow-conflicts"))
    if "platforms" in fields:
        options = replace(options, platforms=_platforms(fields["platforms"]))
    if "contexts" in fields:
        entries = fields["contexts"].entries("contexts")
        contexts = tuple(_context(name, item, root) for name, item in entries.items())
        options = replace(options, contexts=contexts)
    return options


def _choice(value: Value, what: str, kind: type[E], default: E) -> E:
    word = value.text(what)
    if word not in list(kind):
        value.error(f"{what} {word!r} is unknown; there are {', '.join(kind)}")
        return default
    return kind(word)


def _platforms(value: Value) -> tuple[Platform, ...]:
    found: dict[str, Platform] = {}
    for item in value.items("platforms"):
        try:
            platform = Platform.parse(item.text("a platform"))
        except ValueError as error:
            item.error(str(error))
            continue
        if str(platform) in found:
            item.error(f"platform {platform} appears twice")
        found[str(platform)] = platform
    return tuple(found.values())


def _context(name: str, item: Value, root: Path) -> NamedContext:
    fields = item.fields(("directory", "include"), f"context {name!r}", strict=True)
    directory = fields["directory"].text("directory") if "directory" in fields else ""
    if not directory:
        item.error(f"context {name!r} needs a directory")
    include = fields["include"].texts("include") if "include" in fields else ("**",)
    return NamedContext(name, root / directory, include)
