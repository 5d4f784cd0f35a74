"""How commands speak: text for people, one JSON object for machines, progress only on a terminal."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

_PIPE_WIDTH = 140
"""Columns for tables that go into a file or a pipe, which have no width of their own."""

ProgressUpdate = Callable[[int, int | None], None]
"""Called with bytes done and, once known, bytes in all."""


class OutputFile(click.Path):
    """A file to write when all else is done, so whether it can be is asked before anything is begun."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{path}: there is no directory {path.parent}", param, ctx)
        return path


class Output:
    """One per command. stdout carries the result, stderr everything said on the way."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self.console = Console(highlight=False, soft_wrap=True, width=width)
        self.notes = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line on the way; nothing is said to machines."""
        if not self.as_json:
            self.notes.print(text, markup=False)

    def result(self, fields: Mapping[str, Any], text: str | Table | None = None) -> None:
        """The outcome: ``fields`` as one JSON object, or ``text`` for people."""
        if self.as_json:
            click.echo(json.dumps(fields, default=str))
        elif text is not None:
            self.console.print(text, markup=False) if isinstance(text, str) else self.console.print(text)

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[ProgressUpdate]:
        """A bar for bytes; none unless stderr is a terminal and people are reading."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.notes, transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> Table:
    """A plain table; every cell is shown as text."""
    made = Table(title=title, box=None, pad_edge=False, title_justify="left", header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made
