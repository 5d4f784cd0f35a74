"""Registries as repositories, in memory and Debian's, for the suites."""

from collections.abc import AsyncIterator, Callable

import pytest

from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.credentials import Credentials, StaticCredentials
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Deadlines, Transport
from ocikit.testing.registry import RunningRegistry, TokenAuth, running_registry
from servicekit.backoff import Backoff
from servicekit.secrets import Secret

FAST = Backoff(attempts=3, first_s=0.001, cap_s=0.01)
AUTH = TokenAuth("user", "s3cret")
OpenRepository = Callable[[str, str], RegistryRepository]


@pytest.fixture
async def memory_registry() -> AsyncIterator[RunningRegistry]:
    async with running_registry(auth=AUTH) as registry:
        yield registry


@pytest.fixture
async def open_repository() -> AsyncIterator[OpenRepository]:
    """(address, repository) -> RegistryRepository over one connection pool, with AUTH's credentials."""
    deadlines = Deadlines(connect_s=5, first_byte_s=20, idle_s=20)
    async with Transport(deadlines) as transport:

        def open_one(address: str, repository: str) -> RegistryRepository:
            known = StaticCredentials({address: Credentials(AUTH.username, Secret(AUTH.password))})
            client = RegistryClient(RegistryHost.of(address), transport, known, backoff=FAST)
            return RegistryRepository(client, repository)

        yield open_one
