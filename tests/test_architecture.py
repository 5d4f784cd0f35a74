"""The shape of the code: imports, exit codes, suites; checked so that it need not be remembered."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

from cli.exit_codes import BY_ERROR

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("ocikit", "servicekit", "registry_facade", "builder", "content", "cli")

_SUITES = {
    "BlobSource": "BlobSourceSuite",
    "BlobReader": "BlobSourceSuite",
    "BlobIngester": "BlobStoreSuite",
    "BlobWriter": "BlobStoreSuite",
    "BlobManager": "BlobStoreSuite",
    "BlobStore": "BlobStoreSuite",
    "Repository": "RepositorySuite",
}
_WITHOUT_SUITE = {
    "Hasher": "the standard library's own hash objects",
    "CredentialProvider": "one method; its implementations share no behaviour beyond its type",
}


def _modules() -> list[str]:
    return [
        name
        for package in _PACKAGES
        for name in (
            package,
            *(info.name for info in pkgutil.walk_packages([str(_ROOT / package)], f"{package}.")),
        )
        if not name.endswith(".__main__")
    ]


def test_imports_keep_their_contracts() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=_ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout


_IMPORT_ALL = """
import importlib, os, signal, sys, threading
before = dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGTERM), set(os.listdir("."))
for name in sys.argv[1:]:
    importlib.import_module(name)
after = dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGTERM), set(os.listdir("."))
assert before == after, "importing changed the process"
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
assert not threads, f"importing started {threads}"
"""


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    modules = [name for name in _modules() if ".testing" not in name]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-B", "-c", _IMPORT_ALL, *modules],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_code_that_ships_imports_nothing_that_only_tests_need() -> None:
    pattern = re.compile(r"^\s*(?:from|import) (?:[\w.]+\.testing\b|pytest|hypothesis|tests\b)", re.MULTILINE)
    guilty = [
        str(path.relative_to(_ROOT))
        for package in _PACKAGES
        for path in (_ROOT / package).rglob("*.py")
        if "testing" not in path.parts and pattern.search(path.read_text())
    ]
    assert guilty == []


def test_every_protocol_of_ocikit_has_a_suite_or_a_reason() -> None:
    suites = importlib.import_module("ocikit.testing.conformance")
    protocols = {
        name
        for module in _modules()
        if module.startswith("ocikit.") and ".testing" not in module
        for name, found in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if getattr(found, "_is_protocol", False) and found.__module__ == module
    }
    assert protocols == _SUITES.keys() | _WITHOUT_SUITE.keys()
    assert all(hasattr(suites, suite) for suite in _SUITES.values())


def _error_classes() -> dict[str, type[Exception]]:
    return {
        name: found
        for module in _modules()
        if ".testing" not in module
        for name, found in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if issubclass(found, Exception) and found.__module__ == module and not name.startswith("_")
    }


def test_the_exit_codes_name_errors_that_exist() -> None:
    assert BY_ERROR.keys() - _error_classes().keys() == set()


def test_every_error_of_ocikit_has_an_exit_code() -> None:
    classes = _error_classes()
    bare = {
        name
        for name, found in classes.items()
        if issubclass(found, classes["OciError"])
        and not found.__subclasses__()
        and not any(parent.__name__ in BY_ERROR for parent in found.__mro__)
    }
    assert bare == set()
