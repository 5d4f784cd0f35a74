"""What can go wrong while building, as a tree.

::

    BuilderError
     * ProjectInvalid      every problem of the project's files, each with file and line
     * UnknownName         no such chunk or combination in the project
     * ChunkMissing        the repository lacks what a combination needs
     * BuildFailed         the engine said no; the end of its log is in the message
     * FilesConflict       chunks of one image overwrite or delete each other's files
     * TestsFailed         every test that failed, with what it printed
     * InvalidLayer        a layer that is no tar, or one that reaches outside its root
     * EngineUnavailable   no engine, or no privilege to run one
     * WorkspaceError      the state directory cannot be used

Errors of repositories and images are `ocikit.errors`.
"""

from collections.abc import Sequence

_SHOWN_CONFLICTS = 20


class BuilderError(Exception):
    """The root of everything `builder` raises on purpose."""


class ProjectInvalid(BuilderError):
    """``problems`` are one line each, beginning with file and line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class UnknownName(BuilderError, LookupError):
    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        offered = ", ".join(known) or "none"
        super().__init__(f"no {kind} {name!r} in the project; there are: {offered}")
        self.name = name


class ChunkMissing(BuilderError, LookupError):
    def __init__(self, names: Sequence[str], repository: str) -> None:
        super().__init__(
            f"{repository} lacks {', '.join(names)} as the project has them now; run `lapstrake build` first"
        )
        self.names = tuple(names)


class BuildFailed(BuilderError):
    """``log_tail`` is the end of the engine's log, oldest line first."""

    def __init__(self, name: str, reason: str, log_tail: Sequence[str] = ()) -> None:
        super().__init__(
            "\n".join([f"building {name} failed: {reason}", *(f"  {line}" for line in log_tail)])
        )
        self.name = name
        self.reason = reason
        self.log_tail = tuple(log_tail)


class TestsFailed(BuilderError):
    """``failures`` are texts of one or more lines, each naming image, test and cause."""

    __test__ = False  # pytest collects classes by this name

    def __init__(self, failures: Sequence[str]) -> None:
        super().__init__("\n".join(failures))
        self.failures = tuple(failures)


class FilesConflict(BuilderError):
    """``conflicts`` are one line each."""

    def __init__(self, image: str, conflicts: Sequence[str]) -> None:
        shown = list(conflicts[:_SHOWN_CONFLICTS])
        if len(conflicts) > len(shown):
            shown.append(f"and {len(conflicts) - len(shown)} more")
        lines = [f"{image}: {line}" for line in shown]
        super().__init__("\n".join([*lines, "allow what is meant under lapstrake: allow-conflicts"]))
        self.conflicts = tuple(conflicts)


class InvalidLayer(BuilderError, ValueError):
    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"layer {layer} cannot be used: {reason}")


class EngineUnavailable(BuilderError):
    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} cannot be used: {reason}")


class WorkspaceError(BuilderError):
    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
