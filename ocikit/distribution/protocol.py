"""Error answers of the distribution protocol (distribution-spec v1.1, "Error Codes") in both directions."""

import email.utils
import json
import time
from collections.abc import Sequence
from typing import Any

from ocikit.digest import Digest
from ocikit.distribution.transport import Response
from ocikit.errors import (
    BlobNotFound,
    Denied,
    ManifestNotFound,
    OciError,
    RateLimited,
    RegistryError,
    Unauthorized,
)


def error_document(code: str, message: str, detail: Any = None) -> bytes:
    """The body that clients parse."""
    entry: dict[str, Any] = {"code": code, "message": message}
    if detail is not None:
        entry["detail"] = detail
    return json.dumps({"errors": [entry]}).encode()


def diagnostics(text: str) -> Sequence[tuple[str, str]]:
    """(code, message) of each error in an error document; empty when it is none."""
    try:
        errors = json.loads(text)["errors"]
        return [(str(item.get("code", "")), str(item.get("message", ""))) for item in errors]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def error_for(
    registry: str, method: str, response: Response, repository: str, subject: str, text: str
) -> OciError:
    """What an unexpected answer means."""
    found = diagnostics(text)
    detail = "; ".join(f"{code} {message}".strip()[:200] for code, message in found[:3])
    match response.status:
        case 401:
            return Unauthorized(registry, repository)
        case 403:
            return Denied(registry, repository, detail)
        case 404 if "/blobs/" in response.url and isinstance(subject, Digest):
            return BlobNotFound(subject, f"{registry}/{repository}")
        case 404:
            separator = "@" if isinstance(subject, Digest) else ":"
            return ManifestNotFound(
                f"{registry}/{repository}{separator}{subject}" if subject else f"{registry}/{repository}"
            )
        case 429:
            return RateLimited(method, response.url, retry_after_s(response), detail)
        case _:
            return RegistryError(method, response.url, response.status, detail)


def retry_after_s(response: Response) -> float | None:
    """Seconds from a Retry-After header, which may be a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        parsed = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, parsed.timestamp() - time.time())
