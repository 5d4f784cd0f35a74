"""What a chunk's tests depend on, and whether a combination changes any of it; pure.

A test that passed on base + chunk need not run again in an image whose other chunks leave alone what the
chunk's commands can tell from there:

* no file of base or chunk is overwritten or deleted (merged files and traces of package managers are not
  counted: `builder.merge_files`);
* no file joins a directory that is read as a whole (``*.d``), no shared library appears under a name that
  there is already;
* every command that PATH found is found in the same place;
* the chunk's variables have their values (PATH aside), none that programs load code by joins them, and USER,
  WORKDIR and ENTRYPOINT are the same.

That a test asks for something to be absent is beyond this; ``--test-every-image`` is for those who do.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pathspec

from builder.contents import Contents, ContentsEntry, deletions, is_deleted, stacked
from builder.layer_tar import WHITEOUT
from builder.merge_files import LAST_WINS, MERGERS
from ocikit.image_config import ImageConfig

_QUIET = pathspec.PathSpec.from_lines(
    "gitignore",
    [
        *LAST_WINS, *(f"/{path}" for path in MERGERS),
        "/etc/apt/**", "/etc/init.d/**", "/etc/rc?.d/**", "/etc/logrotate.d/**", "/etc/cron.*/**",
    ],
)  # fmt: skip
"""Changed by every installation of a package, and nothing that a command's outcome hangs on."""
_FIELDS = ("User", "WorkingDir", "Entrypoint")
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class _View:
    """A tree with what is looked up in it: programs by directory, and the names of shared libraries."""

    entries: Mapping[str, ContentsEntry]
    programs: Mapping[str, frozenset[str]]
    libraries: frozenset[str]

    @classmethod
    def of(cls, contents: Contents) -> "_View":
        programs: dict[str, set[str]] = defaultdict(set)
        libraries: set[str] = set()
        for path, entry in contents.entries.items():
            directory, _, name = path.rpartition("/")
            if entry.kind in {"link", "hard"} or (entry.kind == "file" and entry.mode & 0o111):
                programs[directory].add(name)
            if _is_library(name):
                libraries.add(name)
        frozen = {directory: frozenset(names) for directory, names in programs.items()}
        return cls(contents.entries, frozen, frozenset(libraries))


@dataclass(slots=True)
class TestScope:
    """Over one base; remembers what it found for each pair of chunks. Contents are told apart by identity."""

    __test__ = False  # pytest collects classes by this name

    base: Contents
    _alone: dict[int, _View] = field(default_factory=dict)
    _views: dict[int, _View] = field(default_factory=dict)
    _pairs: dict[tuple[int, int], bool] = field(default_factory=dict)

    def is_undisturbed(
        self, chunk: Contents, others: Sequence[Contents], alone: ImageConfig, combined: ImageConfig
    ) -> bool:
        """``alone`` is the config of base + chunk, ``combined`` that of the image with ``others`` as well."""
        return (
            _same_surroundings(alone, combined)
            and all(self._leaves_alone(chunk, other) for other in others)
            and self._finds_the_same(chunk, others, alone, combined)
        )

    def _view(self, chunk: Contents) -> _View:
        """Base + chunk."""
        if id(chunk) not in self._alone:
            self._alone[id(chunk)] = _View.of(stacked([self.base, chunk]))
        return self._alone[id(chunk)]

    def _own(self, contents: Contents) -> _View:
        if id(contents) not in self._views:
            self._views[id(contents)] = _View.of(contents)
        return self._views[id(contents)]

    def _leaves_alone(self, chunk: Contents, other: Contents) -> bool:
        key = (id(chunk), id(other))
        if key not in self._pairs:
            self._pairs[key] = _leaves_alone(self._view(chunk), other)
        return self._pairs[key]

    def _finds_the_same(
        self, chunk: Contents, others: Sequence[Contents], alone: ImageConfig, combined: ImageConfig
    ) -> bool:
        """Whether PATH leads to the programs it led to."""
        before, views = self._view(chunk), [self._own(other) for other in others]
        old = [_resolved(part, [before]) for part in alone.env.get("PATH", "").split(":")]
        new = [_resolved(part, [before, *views]) for part in combined.env.get("PATH", "").split(":")]
        if old == new and not any(view.programs.get(part) for view in views for part in old):
            return True
        found = _lookup(old, [before])
        again = _lookup(new, [before, *views])
        return all(again.get(name) == place for name, place in found.items())


def _lookup(directories: Sequence[str], views: Sequence[_View]) -> Mapping[str, str]:
    """Each program's name and the directory that it is found in."""
    found: dict[str, str] = {}
    for directory in reversed(directories):
        for view in views:
            found |= dict.fromkeys(view.programs.get(directory, ()), directory)
    return found


def _resolved(directory: str, views: Sequence[_View]) -> str:
    """``directory`` without a leading slash, links on the way followed."""
    todo, done = [part for part in directory.split("/") if part], list[str]()
    for _ in range(_MAX_LINKS + len(todo)):
        if not todo:
            break
        done.append(todo.pop(0))
        path = "/".join(done)
        entry = next((view.entries[path] for view in reversed(views) if path in view.entries), None)
        if entry is not None and entry.kind == "link":
            parts = entry.content.split("/")
            done = [] if entry.content.startswith("/") else done[:-1]
            for part in parts:
                if part == "..":
                    done = done[:-1]
                elif part not in {"", "."}:
                    done.append(part)
            todo, done = [*done, *todo], []
    return "/".join(done)


def _same_surroundings(alone: ImageConfig, combined: ImageConfig) -> bool:
    if any((alone.execution.get(name) or None) != (combined.execution.get(name) or None) for name in _FIELDS):
        return False
    before, after = alone.env, combined.env
    changed = {name for name in before if name != "PATH" and after.get(name) != before[name]}
    return not changed and not any(_loads_code(name) for name in after.keys() - before.keys())


def _loads_code(variable: str) -> bool:
    return variable in {"ENV", "BASH_ENV"} or variable.startswith("LD_")


def _leaves_alone(alone: _View, other: Contents) -> bool:
    deleted = deletions(other)
    if deleted and any(is_deleted(path, deleted) for path in alone.entries):
        return False
    return not any(_disturbs(path, entry, alone) for path, entry in other.entries.items())


def _disturbs(path: str, entry: ContentsEntry, alone: _View) -> bool:
    directory, _, name = path.rpartition("/")
    if name.startswith(WHITEOUT) or _QUIET.match_file(path):
        return False
    known = alone.entries.get(path)
    if entry.kind == "dir":
        return known is not None and known.kind != "dir"
    if known is not None:
        return known != entry
    return directory.endswith(".d") or (_is_library(name) and name in alone.libraries)


def _is_library(name: str) -> bool:
    return name.startswith("lib") and ".so" in name
