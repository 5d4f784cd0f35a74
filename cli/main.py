"""The root command and the one place where an error becomes a line and an exit status."""

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from cli import exit_codes
from servicekit.logging import configure_logging

T = TypeVar("T")

_COMMANDS = {
    # command: (module, attribute, one line of help); modules are imported when their command runs
    "build": ("cli.build", "build", "Build chunks, then combine them into images."),
    "combine": ("cli.build", "combine", "Join chunks that were built into images, by manifest only."),
    "project": ("cli.project", "project", "Create, inspect and plan a project of chunks."),
    "facade": ("cli.facade", "facade", "Run the registry facade; point container runtimes at it."),
    "content": ("cli.content", "content", "Run the content service of a node."),
    "backup": ("cli.backup", "backup", "Back up a directory as a workspace snapshot."),
    "restore": ("cli.restore", "restore", "Restore a workspace snapshot into a directory."),
    "snapshots": ("cli.snapshots", "snapshots", "List, show, verify and prune snapshots of a workspace."),
    "rebase": ("cli.rebase", "rebase", "Move an image or chunk to a new base, by manifest only."),
    "export": ("cli.export", "export", "Write an image as one file: an archive or a file system."),
    "limits": ("cli.limits", "limits", "Apply, show and clear the I/O limits of a cgroup."),
    "reuse": ("cli.reuse", "reuse", "Show how far images share their layers."),
    "demo": ("cli.demo", "demo", "Run the whole pipeline once, on real input."),
    "completion": ("cli.completion", "completion", "Print the completion script of a shell."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 done, 2 usage, 3 done but something was left out, 4 invalid input, 5 not found, "
    "6 corrupt, 7 unreachable, 8 denied, 9 build failed, 10 test failed, 11 disk, 12 conflict, "
    "130 interrupted.",
)
@click.version_option(package_name="lapstrake", prog_name="lapstrake")
@click.option("--log-level", default="warning", show_default=True, help="debug, info, warning or error.")
def root(log_level: str) -> None:
    """The image and content pipeline of workspace platforms.

    REF is registry/repo:tag, registry/repo@digest or oci:DIR:tag. STORE is s3://bucket/prefix or
    file:///dir.
    """
    configure_logging(level=log_level)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine; what it raises reaches `main`."""
    return asyncio.run(work)


def main() -> None:
    """Never returns: the process ends with a documented status, and an error is one line."""
    sys.exit(guarded(lambda: root.main(standalone_mode=False)))


def guarded(command: Callable[[], Any]) -> int:
    """Runs ``command`` and returns the exit status; an error is reported on standard error."""
    try:
        outcome = command()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        return exit_codes.FAILED
    except Exception as error:  # noqa: BLE001 (the boundary: no traceback reaches a person)
        _report(error)
        return exit_codes.exit_code(error)
    return outcome if isinstance(outcome, int) else exit_codes.OK


def _report(error: Exception) -> None:
    text = str(error) if exit_codes.is_expected(error) else f"{type(error).__name__}: {error}"
    if "--json" in sys.argv:
        click.echo(json.dumps({"error": text, "exit_code": exit_codes.exit_code(error)}), err=True)
        return
    for line in text.splitlines() or [type(error).__name__]:
        click.echo(f"error: {line}", err=True)
    if "--log-level" in sys.argv and "debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
