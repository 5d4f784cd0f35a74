"""Documents that describe the code say what the code says."""

import importlib.machinery
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

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


def _alerts() -> list[str]:
    groups = yaml.safe_load((ROOT / "k8s/dashboards/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def _panels() -> list[str]:
    panels = json.loads((ROOT / "k8s/dashboards/lapstrake.json").read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("expression", [*_alerts(), *_panels()])
def test_alerts_and_dashboards_ask_for_metrics_and_labels_that_exist(expression: str) -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `((?:facade|content)_\w+)` \| (?:counter|gauge|histogram) \| (.*?) \|", reference, re.MULTILINE
    )
    labels = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}
    asked = re.findall(r"\b((?:facade|content)_\w+)(?:\{(.*?)\})?", expression)
    assert asked
    for name, matchers in asked:
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        assert family in labels, name
        assert set(re.findall(r"(\w+)=", matchers)) <= labels[family], name
