"""Documents that describe the code say what the code says."""

import importlib.machinery
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_reference_lists_every_setting_metric_and_exit_status() -> None:
    loader = importlib.machinery.SourceFileLoader(
        "write_reference", str(ROOT / "scripts" / "write-reference")
    )
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    expected = script.render()
    actual = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert actual == expected, "run scripts/write-reference"


def test_the_readme_names_the_two_commands_and_links_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []
