from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx

_FOUNDATION = ("ocikit", "servicekit")


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call that blocks the event loop fails the test when code of the foundation makes it."""
    if request.path.parent.name in _FOUNDATION:
        with blockbuster_ctx(scanned_modules=list(_FOUNDATION)):
            yield
    else:
        yield
