"""The manifests as kubectl renders them: valid, least privileged, and in step with the code."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from cli.main import root
from content.settings import ContentSettings
from registry_facade.settings import FacadeSettings
from servicekit.settings import describe, load

pytestmark = pytest.mark.component("kubectl")
K8S = Path(__file__).parents[2] / "k8s"
TREES = ["base", *sorted(f"overlays/{path.name}" for path in (K8S / "overlays").iterdir())]
API_VERSION = "1.30"
ROOT_ALLOWED = {"hosts-docker-io", "hosts-ghcr-io", "hosts-quay-io", "cache-owner", "content"}
"""Containers that run as root, each with its reason in the manifest."""


@cache
def rendered(tree: str) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", K8S / tree], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(done.stdout))


def workloads(tree: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in rendered(tree):
        if item["kind"] in {"DaemonSet", "StatefulSet", "Deployment"}:
            yield f"{item['kind']}/{item['metadata']['name']}", item["spec"]["template"]


def containers(tree: str, *, init: bool = True) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(container, pod spec)."""
    for _, template in workloads(tree):
        pod = template["spec"]
        kinds = ["initContainers", "containers"] if init else ["containers"]
        for kind in kinds:
            for container in pod.get(kind, []):
                yield container, pod


def ours(tree: str) -> list[dict[str, Any]]:
    return [item for item, _ in containers(tree) if "lapstrake:" in item["image"] and "args" in item]


def settings_files(tree: str) -> list[str]:
    maps = [item for item in rendered(tree) if item["kind"] == "ConfigMap"]
    return [text for item in maps for name, text in item["data"].items() if name.endswith(".toml")]


@pytest.mark.parametrize("tree", TREES)
def test_every_object_fits_its_schema(tree):
    for item in rendered(tree):
        kubernetes_validate.validate(item, API_VERSION, strict=True)


@pytest.mark.parametrize("tree", TREES)
def test_every_object_is_in_the_namespace(tree):
    namespaced = [item for item in rendered(tree) if item["kind"] != "Namespace"]
    assert {item["metadata"].get("namespace") for item in namespaced} == {"lapstrake"}


@pytest.mark.parametrize("tree", TREES)
def test_commands_and_flags_exist(tree):
    found = ours(tree)
    assert found
    for container in found:
        words = list(container["args"])
        command: click.Command = root
        context = click.Context(root)
        while isinstance(command, click.Group):
            inner = command.get_command(context, words.pop(0))
            assert inner is not None, container["args"]
            command = inner
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, container["args"]


@pytest.mark.parametrize("tree", TREES)
def test_environment_variables_exist(tree):
    sections = ((FacadeSettings, "facade"), (ContentSettings, "content"))
    known = {item.variable for settings, section in sections for item in describe(settings, section)}
    for container, _ in containers(tree):
        names = {entry["name"] for entry in container.get("env", [])}
        assert {name for name in names if name.startswith("LAPSTRAKE_")} <= known
        used = set(re.findall(r"\$\(([A-Z_]+)\)", " ".join(container.get("args", []))))
        assert used <= names


@pytest.mark.parametrize("tree", TREES)
def test_settings_files_are_accepted(tree, tmp_path):
    texts = settings_files(tree)
    assert texts
    for text in texts:
        (tmp_path / "facade.toml").write_text(text)
        assert load(FacadeSettings, "facade", file=tmp_path / "facade.toml", environ={}).problems() == []


@pytest.mark.parametrize("tree", TREES)
def test_every_container_is_confined(tree):
    for container, pod in containers(tree):
        own, shared = container["securityContext"], pod.get("securityContext", {})
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"]["drop"] == ["ALL"]
        assert shared["seccompProfile"]["type"] == "RuntimeDefault"
        user = own.get("runAsUser", shared.get("runAsUser"))
        assert (user == 0) == (container["name"] in ROOT_ALLOWED), container["name"]
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


@pytest.mark.parametrize("tree", TREES)
def test_nobody_gets_a_token_of_the_api(tree):
    for _, template in workloads(tree):
        assert template["spec"]["automountServiceAccountToken"] is False
    assert not [item for item in rendered(tree) if item["kind"].endswith("Binding")]


@pytest.mark.parametrize("tree", TREES)
def test_our_services_are_probed_where_they_answer(tree):
    served = [item for item, _ in containers(tree, init=False) if "lapstrake:" in item["image"]]
    assert {item["name"] for item in served} == {"facade", "content"}
    for container in served:
        ports = {port["name"] for port in container["ports"]}
        paths = {kind: container[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe")}
        assert {kind: probe["path"] for kind, probe in paths.items()} == {
            "livenessProbe": "/livez",
            "readinessProbe": "/readyz",
        }
        assert {probe["port"] for probe in paths.values()} <= ports


@pytest.mark.parametrize("tree", TREES)
def test_every_reference_leads_somewhere(tree):
    names = {(item["kind"], item["metadata"]["name"]) for item in rendered(tree)}
    for _, template in workloads(tree):
        pod = template["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
    for container, pod in containers(tree):
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        claims = {"repository"} if container["name"] == "kubo" else set()
        assert mounts <= {volume["name"] for volume in pod.get("volumes", [])} | claims


@pytest.mark.parametrize("tree", TREES)
def test_every_workload_has_a_network_policy(tree):
    policies = [item for item in rendered(tree) if item["kind"] == "NetworkPolicy"]
    selected = [item["spec"]["podSelector"]["matchLabels"] for item in policies]
    for name, template in workloads(tree):
        assert template["metadata"]["labels"] in selected, name


def test_only_facades_reach_the_rpc_of_kubo():
    (policy,) = (
        item
        for item in rendered("base")
        if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] == "kubo"
    )
    rules = [rule for rule in policy["spec"]["ingress"] if {"port": 5001} in rule["ports"]]
    assert [rule["from"] for rule in rules] == [[{"podSelector": {"matchLabels": {"app": "facade"}}}]]


def test_the_mirror_is_written_for_every_upstream():
    (facade,) = (template for name, template in workloads("base") if name == "DaemonSet/facade")
    written = {
        container["args"][container["args"].index("--registry") + 1]
        for container in facade["spec"]["initContainers"]
        if "args" in container
    }
    assert written == set(load(FacadeSettings, "facade", file=K8S / "base/facade.toml", environ={}).upstreams)


def test_the_image_copies_what_exists_and_all_packages():
    text = (K8S / "image/Dockerfile").read_text()
    sources = {
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()
    }
    repository = K8S.parent
    assert all((repository / source).exists() for source in sources)
    packages = {path.parent.name for path in repository.glob("*/__init__.py")} - {"tests"}
    assert packages <= sources
