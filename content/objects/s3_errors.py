"""What an S3 server or the SDK says of a failure, in the errors of this package."""

import contextlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from botocore import exceptions as sdk

from content.errors import (
    ContentError,
    ObjectCorrupt,
    ObjectNotFound,
    PreconditionFailed,
    StoreDenied,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)

_DENIED = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "TokenRefreshRequired",
        "403",
    }
)
_TRANSIENT = frozenset(
    {
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "RequestTimeTooSkewed",
        "OperationAborted",
        "BadDigest",
        "XAmzContentChecksumMismatch",
        "IncompleteBody",
    }
)


@contextlib.contextmanager
def translated_errors(store: str, bucket: str, action: str, key: str) -> Iterator[None]:
    """Raises ContentError for what the SDK raises inside; ``action`` says in a word or two what was tried."""
    what = f"{action} {key}"
    try:
        yield
    except ContentError:
        raise
    except sdk.ClientError as error:
        raise _from_response(store, bucket, what, key, error) from error
    except (
        sdk.NoCredentialsError,
        sdk.PartialCredentialsError,
        sdk.CredentialRetrievalError,
        sdk.TokenRetrievalError,
    ) as error:
        raise StoreDenied(store, what, str(error)) from error
    except (
        sdk.HTTPClientError,
        sdk.ConnectionError,
        sdk.IncompleteReadError,
        sdk.ResponseStreamingError,
        sdk.FlexibleChecksumError,
        OSError,
    ) as error:
        raise StoreUnavailable(store, what, _first_line(error)) from error
    except (sdk.BotoCoreError, ValueError) as error:
        raise StoreRefused(store, what, _first_line(error)) from error


def _from_response(store: str, bucket: str, what: str, key: str, error: sdk.ClientError) -> ContentError:
    response: Any = error.response
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    detail = f"{code} {response.get('Error', {}).get('Message', '')}".strip()[:300]
    if code == "NoSuchUpload":
        return UploadGone(key)
    if code == "NoSuchBucket":
        return StoreRefused(store, what, f"there is no bucket {bucket}")
    if code in {"NoSuchKey", "NotFound", "404"}:
        return ObjectNotFound(key, store)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return ObjectCorrupt(key, "it ends before what is wanted of it begins")
    if code in {"PreconditionFailed", "ConditionalRequestConflict"} or status in {409, 412}:
        return PreconditionFailed(key)
    if code in _DENIED or status in {401, 403}:
        return StoreDenied(store, what, detail)
    if code in _TRANSIENT or status in {408, 429} or (status >= 500 and status != 501) or status == 200:
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        after = headers.get("retry-after", "")
        return StoreUnavailable(store, what, detail, float(after) if after.isdigit() else None)
    return StoreRefused(store, what, detail)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]
