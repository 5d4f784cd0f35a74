"""Tag lists and referrers as the distribution API shows them, whoever keeps them."""

from collections.abc import Sequence

from aiohttp import web

from ocikit import media_types
from ocikit.errors import InvalidReference
from ocikit.manifest import Index
from registry_facade.responses import json_response


def tags_response(request: web.Request, name: str, every: Sequence[str], namespace: str) -> web.Response:
    """distribution-spec v1.1, "Listing Tags": lexical order, ``n``, ``last``, Link to the next page."""
    limit = request.query.get("n", "")
    if limit and not limit.isdigit():
        raise InvalidReference(limit, "n must be a number")
    last = request.query.get("last", "")
    left = sorted(tag for tag in every if tag > last)
    page = left[: int(limit)] if limit else left
    headers = {"OCI-Namespace": namespace} if namespace else {}
    if page and len(page) < len(left):
        headers["Link"] = f'</v2/{name}/tags/list?n={limit}&last={page[-1]}>; rel="next"'
    return json_response({"name": name, "tags": page}, "application/json", headers)


def referrers_response(request: web.Request, index: Index, namespace: str) -> web.Response:
    """distribution-spec v1.1, "Listing Referrers": an index, empty rather than absent."""
    wanted = request.query.get("artifactType", "")
    headers = {"OCI-Namespace": namespace} if namespace else {}
    entries = index.manifests
    if wanted:
        entries = tuple(entry for entry in entries if entry.artifact_type == wanted)
        headers["OCI-Filters-Applied"] = "artifactType"
    document = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX,
        "manifests": [entry.dump() for entry in entries],
    }
    return json_response(document, media_types.OCI_INDEX, headers)
