"""docker's config.json, as Docker itself reads it."""

import base64
import json
from pathlib import Path

import pytest

from ocikit.distribution.credentials import (
    CredentialHelperFailed,
    DockerConfigCredentials,
    DockerConfigInvalid,
)

REGISTRY = "registry.example"
AUTH = base64.b64encode(b"me:s3cret").decode()


def _config(directory: Path, document: object) -> DockerConfigCredentials:
    path = directory / "config.json"
    path.write_text(json.dumps(document))
    return DockerConfigCredentials(path)


def _helper(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")


async def test_a_missing_file_knows_nobody(tmp_path: Path) -> None:
    assert await DockerConfigCredentials(tmp_path / "none").credentials(REGISTRY) is None


@pytest.mark.parametrize("key", [REGISTRY, f"https://{REGISTRY}"])
async def test_an_entry_is_found_under_each_spelling(tmp_path: Path, key: str) -> None:
    found = await _config(tmp_path, {"auths": {key: {"auth": AUTH}}}).credentials(REGISTRY)
    assert found is not None
    assert (found.username, found.password.reveal()) == ("me", "s3cret")
    assert "s3cret" not in repr(found)


async def test_another_registry_gets_nothing(tmp_path: Path) -> None:
    assert await _config(tmp_path, {"auths": {REGISTRY: {"auth": AUTH}}}).credentials("other.example") is None


async def test_an_identity_token_is_kept_apart_from_the_password(tmp_path: Path) -> None:
    found = await _config(tmp_path, {"auths": {REGISTRY: {"identitytoken": "t0ken"}}}).credentials(REGISTRY)
    assert found is not None
    assert found.identity is not None
    assert found.identity.reveal() == "t0ken"


async def test_the_registrys_own_helper_goes_before_what_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _helper(tmp_path, monkeypatch, "own", """echo '{"Username": "helped", "Secret": "x"}'""")
    config = _config(tmp_path, {"auths": {REGISTRY: {"auth": AUTH}}, "credHelpers": {REGISTRY: "own"}})
    found = await config.credentials(REGISTRY)
    assert found is not None
    assert found.username == "helped"


async def test_what_is_written_down_goes_before_the_helper_for_all(tmp_path: Path) -> None:
    config = _config(tmp_path, {"auths": {REGISTRY: {"auth": AUTH}}, "credsStore": "absent"})
    found = await config.credentials(REGISTRY)
    assert found is not None
    assert found.username == "me"


async def test_a_helper_that_knows_nobody_means_anonymous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _helper(tmp_path, monkeypatch, "none", "exit 1")
    assert await _config(tmp_path, {"credsStore": "none"}).credentials(REGISTRY) is None


async def test_a_helper_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialHelperFailed, match="docker-credential-absent"):
        await _config(tmp_path, {"credsStore": "absent"}).credentials(REGISTRY)


@pytest.mark.parametrize("text", ["{", "[]", ""])
async def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(DockerConfigInvalid, match=r"config\.json"):
        await DockerConfigCredentials(path).credentials(REGISTRY)
