"""Whose name we come in: docker config.json, credential helpers, or given pairs.

The file is read anew for each lookup, so that rotated credentials are used without a restart.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from servicekit.secrets import Secret


@dataclass(frozen=True, slots=True)
class Credentials:
    """``identity`` is an OAuth2 refresh token, used instead of the password where there is one."""

    username: str
    password: Secret
    identity: Secret | None = None


class CredentialProvider(Protocol):
    async def credentials(self, registry: str) -> Credentials | None:
        """What to show ``registry`` (host[:port]); None means anonymous. Safe for concurrent use."""


class Anonymous:
    async def credentials(self, registry: str) -> Credentials | None:
        del registry
        return None


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    by_registry: Mapping[str, Credentials]

    async def credentials(self, registry: str) -> Credentials | None:
        return self.by_registry.get(registry)


@dataclass(frozen=True, slots=True)
class CredentialChain:
    """The first provider that knows the registry decides."""

    providers: Sequence[CredentialProvider]

    async def credentials(self, registry: str) -> Credentials | None:
        for provider in self.providers:
            if (found := await provider.credentials(registry)) is not None:
                return found
        return None


class CredentialHelperFailed(Exception):
    def __init__(self, helper: str, registry: str, reason: str) -> None:
        super().__init__(f"docker-credential-{helper} gave no credentials for {registry}: {reason}")


class DockerConfigInvalid(Exception):
    """The file is there but cannot be used; going on without credentials would hide that."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; mend it or log in again")


@dataclass(frozen=True, slots=True)
class DockerConfigCredentials:
    """``path`` is a docker config.json; a missing file knows nobody."""

    path: Path

    async def credentials(self, registry: str) -> Credentials | None:
        """The registry's own helper, else what is written down, else the helper for all, as Docker has it.

        Raises DockerConfigInvalid or CredentialHelperFailed.
        """
        document = await asyncio.to_thread(self._read)
        if (own := _mapping(document, "credHelpers").get(registry)) is not None:
            return await _ask_helper(str(own), registry)
        for key in _spellings(registry):
            entry = _mapping(document, "auths").get(key)
            if isinstance(entry, Mapping) and (found := _from_entry(entry)) is not None:
                return found
        common = document.get("credsStore")
        return await _ask_helper(str(common), registry) if common else None

    def _read(self) -> Mapping[str, Any]:
        try:
            document = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DockerConfigInvalid(self.path, error.strerror or str(error)) from error
        except ValueError as error:
            raise DockerConfigInvalid(self.path, "not JSON") from error
        if not isinstance(document, dict):
            raise DockerConfigInvalid(self.path, "must be an object")
        return document


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def default_docker_config(home: Path, docker_config: str | None) -> Path:
    """Where Docker keeps it: ``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json``."""
    return (Path(docker_config) if docker_config else home / ".docker") / "config.json"


def _spellings(registry: str) -> Sequence[str]:
    hub = (
        ["https://index.docker.io/v1/", "index.docker.io"]
        if registry in {"docker.io", "registry-1.docker.io"}
        else []
    )
    return [registry, f"https://{registry}", f"http://{registry}", *hub]


def _from_entry(entry: Mapping[str, Any]) -> Credentials | None:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            decoded = base64.b64decode(str(entry["auth"])).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        username, _, password = decoded.partition(":")
    identity = entry.get("identitytoken")
    if not username and not identity:
        return None
    return Credentials(username, Secret(password.rstrip("\0")), Secret(str(identity)) if identity else None)


async def _ask_helper(helper: str, registry: str) -> Credentials | None:
    """The protocol of docker-credential-helpers: ``get``, the server on stdin, JSON on stdout."""
    try:
        process = await asyncio.create_subprocess_exec(
            f"docker-credential-{helper}",
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(30):
            out, _ = await process.communicate(registry.encode())
    except (OSError, TimeoutError) as error:
        raise CredentialHelperFailed(helper, registry, str(error)) from error
    if process.returncode != 0:
        return None  # the helper's way to say that it knows nobody
    answer = json.loads(out)
    username, secret = str(answer.get("Username", "")), Secret(str(answer.get("Secret", "")))
    if username == "<token>":
        return Credentials("", Secret(""), secret)
    return Credentials(username, secret)


_: Sequence[CredentialProvider] = (Anonymous(), StaticCredentials({}), CredentialChain(()))
