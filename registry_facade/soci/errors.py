"""Why a layer has no zTOC."""

from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable


class NotIndexable(Exception):
    """The layer is no gzip of a tar that SOCI could describe: the same on every node, for ever."""


class BuildFailed(SourceUnavailable):
    """The process that should have read the layer came to no verdict; another try may."""

    def __init__(self, layer: Digest, reason: str) -> None:
        super().__init__(f"the zTOC of {layer}", reason)
