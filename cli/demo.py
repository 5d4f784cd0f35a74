"""``lapstrake demo``: the whole pipeline once, on real input, through the commands a person would type."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click


@click.command()
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Work in this (new or empty) directory and leave everything there; default: a temporary one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def demo(*, keep: Path | None, as_json: bool) -> None:
    """Build, pull, compose, back up and restore: the main job on real input, in under three minutes.

    Needs buildah and skopeo (`make demo` installs them) and the sample project of a source checkout.
    Nothing outside the working directory is written, nothing leaves this machine.
    """
    from cli.demo_content import run_content
    from cli.demo_images import run_images
    from cli.demo_run import DemoRun
    from cli.output import Output, table
    from servicekit.units import format_size

    output = Output(as_json=as_json)
    started_s = time.monotonic()
    with _workdir(keep) as work:
        run = DemoRun(work, output)
        run_images(run)
        run_content(run)
    seconds = time.monotonic() - started_s
    rows = [(row.step, format_size(row.size_bytes), f"{row.seconds:.1f} s", row.outcome) for row in run.rows]
    fields = {"steps": [row.as_json() for row in run.rows], "duration_s": round(seconds, 1)}
    output.result(fields, table(("step", "bytes", "time", "what happened"), rows, title="\nWhat happened"))
    output.say(f"all of it in {seconds:.0f} s" + (f"; kept in {keep}" if keep else ""))


@contextlib.contextmanager
def _workdir(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        made = Path(tempfile.mkdtemp(prefix="lapstrake-demo-"))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return
    if keep.exists() and any(keep.iterdir()):
        raise click.UsageError(f"--keep {keep}: the directory is not empty; name a new one")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.resolve()
