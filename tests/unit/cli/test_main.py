"""The edges of the command line: help, exit statuses, errors in one line."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cli import exit_codes
from cli.main import root
from ocikit.errors import (
    BlobNotFound,
    Denied,
    DigestMismatch,
    InvalidReference,
    SourceUnavailable,
    StoreError,
)
from servicekit.settings import SettingsInvalid


def _lapstrake(*argv: str) -> "subprocess.CompletedProcess[str]":
    code = "from cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SettingsInvalid(["facade.listen: ..."]), 4),
        (InvalidReference("x", "y"), 4),
        (BlobNotFound("sha256:0", "disk"), 5),
        (DigestMismatch("a", "b", "c"), 6),
        (SourceUnavailable("ipfs", "gone"), 7),
        (Denied("r", "n"), 8),
        (StoreError("/x", "disk full"), 11),
        (KeyboardInterrupt(), 130),
        (RuntimeError("unforeseen"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_kind_of_error_has_its_status(error: BaseException, status: int) -> None:
    assert exit_codes.exit_code(error) == status


def test_every_command_has_help_that_loads() -> None:
    listed = root.list_commands(None)  # type: ignore[arg-type] # click passes a context that is not used
    for name in listed:
        result = CliRunner().invoke(root, [name, "--help"])
        assert result.exit_code == 0, (name, result.output, result.exception)
        assert "Usage:" in result.output


def test_an_unknown_command_is_a_usage_error() -> None:
    done = _lapstrake("sail")
    assert done.returncode == exit_codes.USAGE
    assert "No such command 'sail'" in done.stderr


def test_an_error_is_one_line_without_a_traceback() -> None:
    done = _lapstrake("reuse", "report", "oci:/nonexistent:tag")
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "/nonexistent" in done.stderr


def test_machines_get_the_error_as_json() -> None:
    done = _lapstrake("reuse", "report", "oci:/nonexistent:tag", "--json")
    document = json.loads(done.stderr)
    assert document["exit_code"] == done.returncode
    assert "/nonexistent" in document["error"]
