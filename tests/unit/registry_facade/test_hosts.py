"""The files that tell container runtimes about the facade, and that they can be taken back."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_facade.hosts import (
    Client,
    HostsInvalid,
    Mirror,
    daemon_json,
    hosts_toml,
    registries_conf,
    undo,
    without_daemon_entries,
    write,
)

FACADE = "http://127.0.0.1:5000"
HUB = Mirror("docker.io", FACADE)


def test_hosts_toml_names_the_mirror_before_the_registry() -> None:
    found = tomllib.loads(hosts_toml(Mirror("docker.io", f"{FACADE}/", Path("/etc/ca.crt"))))
    assert found["server"] == "https://registry-1.docker.io"
    assert found["host"] == {FACADE: {"capabilities": ["pull", "resolve"], "ca": "/etc/ca.crt"}}


def test_registries_conf_addresses_the_facade_by_path_prefix() -> None:
    (found,) = tomllib.loads(registries_conf(HUB))["registry"]
    assert (found["prefix"], found["location"]) == ("docker.io", "docker.io")
    assert found["mirror"] == [{"location": "127.0.0.1:5000/docker.io", "insecure": True}]


def test_an_https_facade_is_never_called_insecure() -> None:
    mirror = Mirror("docker.io", "https://facade.test:5000")
    assert "insecure" not in registries_conf(mirror)
    assert daemon_json({}, mirror) == {"registry-mirrors": ["https://facade.test:5000/"]}


PLACES: dict[Client, str] = {
    "containerd": "docker.io/hosts.toml",
    "podman": "lapstrake-docker.io.conf",
    "docker": "",
}


def place(client: Client, directory: Path) -> Path:
    return directory / "daemon.json" if client == "docker" else directory


def target(client: Client, directory: Path) -> Path:
    return place(client, directory) / PLACES[client]


@pytest.mark.parametrize("client", PLACES)
def test_undo_restores_a_foreign_file_byte_for_byte(client: Client, tmp_path: Path) -> None:
    path = target(client, tmp_path)
    path.parent.mkdir(exist_ok=True)
    path.write_text('{ "log-level":"warn" }')
    for _ in range(2):  # writing twice must not take the first writing for what was there before
        assert write(client, HUB, place(client, tmp_path)) == path
    assert path.read_text() != '{ "log-level":"warn" }'
    assert undo(client, "docker.io", place(client, tmp_path))
    assert path.read_text() == '{ "log-level":"warn" }'
    assert not undo(client, "docker.io", place(client, tmp_path))
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("client", PLACES)
def test_undo_leaves_nothing_where_nothing_was(client: Client, tmp_path: Path) -> None:
    write(client, HUB, place(client, tmp_path))
    assert undo(client, "docker.io", place(client, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_undo_keeps_what_was_changed_in_daemon_json_since(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps({"registry-mirrors": ["https://other.test/"]}))
    write("docker", HUB, path)
    edited = {**json.loads(path.read_text()), "debug": True}
    path.write_text(json.dumps(edited))
    assert undo("docker", "docker.io", path)
    assert json.loads(path.read_text()) == {"registry-mirrors": ["https://other.test/"], "debug": True}


def test_a_mirror_that_stood_there_already_is_not_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps({"registry-mirrors": [f"{FACADE}/"]}))
    write("docker", HUB, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "debug": True}))
    undo("docker", "docker.io", path)
    assert json.loads(path.read_text()) == {"registry-mirrors": [f"{FACADE}/"], "debug": True}


BAD = {"not json": "{", "not an object": "[]", "mirrors are no list": '{"registry-mirrors": "x"}'}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_daemon_json_that_cannot_be_understood_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(text)
    with pytest.raises(HostsInvalid):
        write("docker", HUB, path)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("daemon.json", text)]


def test_docker_mirrors_docker_hub_only(tmp_path: Path) -> None:
    with pytest.raises(HostsInvalid, match=r"docker\.io only"):
        write("docker", Mirror("quay.io", FACADE), tmp_path / "daemon.json")


urls = st.lists(st.sampled_from(["https://a.test/", "https://b.test/", f"{FACADE}/"]), unique=True)
documents = st.fixed_dictionaries(
    {},
    optional={
        "registry-mirrors": urls,
        "insecure-registries": st.lists(st.sampled_from(["a", "b"])),
        "debug": st.booleans(),
    },
)


@given(documents)
def test_what_is_added_comes_first_once_and_goes_again(document: dict[str, Any]) -> None:
    changed = daemon_json(document, HUB)
    assert changed["registry-mirrors"][0] == f"{FACADE}/"
    assert len(set(changed["registry-mirrors"])) == len(changed["registry-mirrors"])
    assert daemon_json(changed, HUB) == changed
    added = {
        key: changed[key][0]
        for key in ("registry-mirrors", "insecure-registries")
        if changed[key][0] not in document.get(key, [])
    }
    gone = without_daemon_entries(changed, added)
    assert {key: sorted(value) if isinstance(value, list) else value for key, value in gone.items()} == {
        key: sorted(value) if isinstance(value, list) else value
        for key, value in document.items()
        if value != [] or key not in added
    }
