"""What can go wrong with images, as a tree.

::

    OciError
     * NotFound           BlobNotFound  ManifestNotFound
     * InvalidInput       InvalidDigest  InvalidReference  InvalidManifest  InvalidConfig
                          UnsupportedMediaType  InvalidRange  NotBuiltFromBase
     * IntegrityError     DigestMismatch  SizeMismatch        never retried from the same bytes
     * AccessError        Unauthorized  Denied
     * RegistryError      a registry's error answer            retryable by status
        + RateLimited     429, with retry_after_s
     * TransportError     ConnectFailed  ReadFailed  TimedOut  retryable
     * SourceUnavailable  a whole source is down               retryable, another source may serve
     * StoreError         the local store cannot be used (disk full, read-only ...)

``retryable`` says whether the same request may succeed later. Messages are one line, name the object, and
hold no secret.
"""


class OciError(Exception):
    """The root of everything `ocikit` raises on purpose."""

    retryable = False


class NotFound(OciError, LookupError):
    """Nothing of that name there; a definite answer, never an assumption after a failure."""


class BlobNotFound(NotFound):
    def __init__(self, digest: str, where: str) -> None:
        super().__init__(f"blob {digest} not found in {where}")
        self.digest = digest


class ManifestNotFound(NotFound):
    def __init__(self, reference: str) -> None:
        super().__init__(f"image {reference} not found")
        self.reference = reference


class InvalidInput(OciError, ValueError):
    """Something that cannot be what it should be, whoever sent it."""


class InvalidDigest(InvalidInput):
    def __init__(self, text: str) -> None:
        super().__init__(f"invalid digest {text[:80]!r}: expected sha256:<64 hex> or sha512:<128 hex>")
        self.text = text


class InvalidReference(InvalidInput):
    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"invalid image reference {text[:300]!r}: {reason}")
        self.text = text


class InvalidManifest(InvalidInput):
    def __init__(self, reason: str, subject: str = "manifest") -> None:
        super().__init__(f"invalid {subject}: {reason}")
        self.reason = reason


class InvalidConfig(InvalidInput):
    def __init__(self, reason: str, subject: str = "image config") -> None:
        super().__init__(f"invalid {subject}: {reason}")


class UnsupportedMediaType(InvalidInput):
    def __init__(self, media_type: str, expected: str) -> None:
        super().__init__(f"unsupported media type {media_type[:120]!r}: expected {expected}")
        self.media_type = media_type


class InvalidRange(InvalidInput):
    """A range that no byte of the blob satisfies (RFC 9110, 14.1.2)."""

    def __init__(self, text: str, size_bytes: int) -> None:
        super().__init__(f"range {text[:80]!r} cannot be satisfied: the blob has {size_bytes} bytes")
        self.size_bytes = size_bytes


class NotBuiltFromBase(InvalidInput):
    def __init__(self, image: str, base: str, reason: str) -> None:
        super().__init__(f"{image} was not built from {base}: {reason}")


class IntegrityError(OciError):
    """Bytes that are not what their name says. Reading them again from the same place will not help."""


class DigestMismatch(IntegrityError):
    def __init__(self, expected: str, actual: str, where: str) -> None:
        super().__init__(f"blob from {where} is corrupt: expected {expected}, got {actual}")
        self.expected = expected
        self.actual = actual


class SizeMismatch(IntegrityError):
    def __init__(self, digest: str, expected_bytes: int, actual_bytes: int, where: str) -> None:
        super().__init__(f"blob {digest} from {where} has {actual_bytes} bytes, expected {expected_bytes}")
        self.expected_bytes = expected_bytes
        self.actual_bytes = actual_bytes


class AccessError(OciError):
    """The registry knows us, or not, and says no."""


class Unauthorized(AccessError):
    def __init__(self, registry: str, repository: str) -> None:
        super().__init__(
            f"{registry} wants credentials for {repository or 'its API'}: log in with a docker config.json"
        )


class Denied(AccessError):
    def __init__(self, registry: str, repository: str, detail: str = "") -> None:
        super().__init__(f"{registry} denies access to {repository}{': ' + detail if detail else ''}")


class RegistryError(OciError):
    """An answer outside what was expected, with the registry's own words (bounded)."""

    def __init__(self, method: str, url: str, status: int, detail: str = "") -> None:
        super().__init__(f"{method} {url}: status {status}{': ' + detail if detail else ''}")
        self.status = status
        self.retryable = status in {408, 425, 429, 499, 500, 502, 503, 504, 522}


class RateLimited(RegistryError):
    """Status 429; ``retry_after_s`` is the registry's wish, None when it named none."""

    def __init__(self, method: str, url: str, retry_after_s: float | None, detail: str = "") -> None:
        super().__init__(method, url, 429, detail)
        self.retry_after_s = retry_after_s


class TransportError(OciError):
    """No answer, or half of one."""

    retryable = True


class ConnectFailed(TransportError, ConnectionError):
    def __init__(self, registry: str, reason: str) -> None:
        super().__init__(f"cannot reach {registry}: {reason}")


class ReadFailed(TransportError):
    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"reading {url} broke off: {reason}")


class TimedOut(TransportError, TimeoutError):
    def __init__(self, url: str, phase: str) -> None:
        super().__init__(f"{url} timed out ({phase})")


class SourceUnavailable(OciError):
    """A source cannot say whether it has something; another one may."""

    retryable = True

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source} is unavailable: {reason}")
        self.source = source


class StoreError(OciError):
    """The local store failed; ``path`` and the system's reason are in the message."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
