"""From a name to a repository: the one place that decides between a directory and a registry."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.credentials import CredentialProvider, DockerConfigCredentials, default_docker_config
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Transport
from ocikit.layout import LayoutRepository
from ocikit.reference import RepositoryName
from ocikit.repository import Repository


class RepositoryOpener:
    """Opens repositories over one connection pool; make it with `repositories`."""

    def __init__(self, transport: Transport, provider: CredentialProvider) -> None:
        self._transport = transport
        self._provider = provider
        self._clients: dict[str, RegistryClient] = {}

    def open(self, name: RepositoryName, *, create: bool = False) -> Repository:
        """``create`` lets a missing layout directory come into being at the first write."""
        if name.layout is not None:
            return LayoutRepository(name.layout, create=create)
        client = self._clients.get(name.registry)
        if client is None:
            client = RegistryClient(RegistryHost.of(name.registry), self._transport, self._provider)
            self._clients[name.registry] = client
        return RegistryRepository(client, name.repository)


@contextlib.asynccontextmanager
async def repositories(provider: CredentialProvider | None = None) -> AsyncIterator[RepositoryOpener]:
    """An opener for as long as the block lasts; credentials default to docker's config.json."""
    found = provider or DockerConfigCredentials(default_docker_config(Path.home(), None))
    async with Transport() as transport:
        yield RepositoryOpener(transport, found)
