"""An object store on S3 or what speaks like it, through boto3 in threads.

One layer retries, and it is not the SDK's. Each part carries its own CRC-32 in a header, which every server
understands, and then the payload is not hashed for the signature a second time; the rest of the request is
signed as ever. Responses are not wrapped in the SDK's checksum streams: what is read is checked against our
own index.
"""

import asyncio
import base64
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

import boto3
from botocore.config import Config

from content.errors import (
    ObjectCorrupt,
    ObjectNotFound,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)
from content.objects.base import (
    MultipartStore,
    ObjectInfo,
    ObjectReader,
    PartRef,
    Span,
    StoreProperties,
    Upload,
    UploadedPart,
)
from content.objects.s3_errors import translated_errors
from servicekit.threads import to_its_end

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
_PIECE_BYTES = 256 << 10
"""What a body is read by: what fits into a processor's own cache is twice as fast to pass on."""
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60


def s3_client(endpoint: str | None, *, connections: int) -> "S3Client":
    """A client by boto3's own credential chain; blocking (it may read files and ask a metadata service)."""
    settings = Config(
        max_pool_connections=connections,
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
        s3={"payload_signing_enabled": False, "addressing_style": "path" if endpoint else "auto"},
    )
    session = boto3.Session()
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, config=settings, region_name=region)


class S3ObjectStore:
    """A MultipartStore on ``bucket`` below ``prefix``; owns its threads and its client until `close`.

    ``properties`` are what `content.objects.probe` found out about this server.
    """

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        prefix: str,
        properties: StoreProperties,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._properties = properties
        self._threads = ThreadPoolExecutor(properties.concurrency + 2, thread_name_prefix="s3")

    @property
    def name(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def properties(self) -> StoreProperties:
        return self._properties

    def learn(self, properties: StoreProperties) -> None:
        """Takes on what a probe found out; before the store is shared."""
        self._properties = properties

    async def _run(self, action: str, key: str, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._translated, action, key, work)

    def _translated(self, action: str, key: str, work: Callable[[], T]) -> T:
        with translated_errors(self.name, self._bucket, action, key):
            return work()

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    async def stat(self, key: str) -> ObjectInfo:
        def work() -> ObjectInfo:
            head = self._client.head_object(**self._at(key), ChecksumMode="ENABLED")
            return _info(key, head, head["ContentLength"])

        return await self._run("stat", key, work)

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        asked: dict[str, Any] = self._at(key)
        if span is not None:
            asked["Range"] = f"bytes={span.start}-{span.stop - 1}"
        if if_match is not None:
            asked["IfMatch"] = if_match
        answer = await self._run("read", key, lambda: self._client.get_object(**asked))
        size = int(answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"])
        expected = span.length if span is not None else size
        with answer["Body"] as connection:
            if span is not None and size < span.stop:
                raise ObjectCorrupt(key, f"it ends at byte {size}, before byte {span.stop}")
            if answer["ContentLength"] != expected:
                detail = f"it answered {answer['ContentLength']} bytes instead of {expected}"
                raise StoreUnavailable(self.name, f"read {key}", detail)
            yield _BodyReader(self, _info(key, answer, size), answer["Body"], connection, expected)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        token: str | None = None
        while True:
            asked = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
            if token:
                asked["ContinuationToken"] = token
            page = await self._run("list", prefix, lambda asked=asked: self._client.list_objects_v2(**asked))  # type: ignore[misc]
            for row in page.get("Contents", []):
                key = row["Key"][len(self._prefix) :]
                yield ObjectInfo(key, row["Size"], row["ETag"], row["LastModified"].timestamp())
            token = page.get("NextContinuationToken")
            if not token:
                return

    async def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        asked = self._at(key)
        if if_match is not None:
            asked["IfMatch"] = if_match
        if if_absent:
            asked["IfNoneMatch"] = "*"

        def work() -> ObjectInfo:
            checksum = _encode_crc32(zlib.crc32(data))
            answer = self._client.put_object(**asked, Body=data, ChecksumCRC32=checksum)
            return ObjectInfo(key, len(data), answer["ETag"], 0.0)

        return await self._run("write", key, work)

    async def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectNotFound):
            await self._run("delete", key, lambda: self._client.delete_object(**self._at(key)))

    async def presign(self, key: str, *, expires_s: int, file_name: str) -> str:
        """A URL under which ``key`` can be fetched; an object that is not there is not noticed."""
        asked = self._at(key) | {"ResponseContentDisposition": f'attachment; filename="{file_name}"'}

        def work() -> str:  # may ask for fresh credentials
            return self._client.generate_presigned_url("get_object", Params=asked, ExpiresIn=expires_s)

        return await self._run("sign", key, work)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def create_upload(self, key: str, *, copies: bool = False) -> Upload:
        asked = self._at(key)
        checked = self._properties.checks_copies if copies else self._properties.checks_crc32
        if checked:
            asked |= {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
        answer = await self._run("begin", key, lambda: self._client.create_multipart_upload(**asked))
        return Upload(key, answer["UploadId"], checked=checked)

    async def put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        asked = self._at(upload.key) | {"UploadId": upload.upload_id, "PartNumber": ref.number}

        def work() -> UploadedPart:
            checksum = _encode_crc32(ref.crc32)
            body = cast("bytes", data)  # a bytearray is sent as well, and needs no copy
            answer = self._client.upload_part(**asked, Body=body, ChecksumCRC32=checksum)
            return UploadedPart(ref, answer["ETag"])

        return await self._run(f"write part {ref.number} of", upload.key, work)

    async def copy_part(self, upload: Upload, ref: PartRef, source: ObjectInfo, start: int) -> UploadedPart:
        asked = self._at(upload.key) | {
            "UploadId": upload.upload_id,
            "PartNumber": ref.number,
            "CopySource": self._at(source.key),
            "CopySourceRange": f"bytes={start}-{start + ref.size_bytes - 1}",
            "CopySourceIfMatch": source.etag,
        }

        def work() -> UploadedPart:
            result = self._client.upload_part_copy(**asked).get("CopyPartResult", {})
            if not result.get("ETag"):
                raise StoreRefused(self.name, f"copy into {upload.key}", "it answered without a copy")
            if (copied := result.get("ChecksumCRC32")) and copied != _encode_crc32(ref.crc32):
                raise StoreRefused(
                    self.name, f"copy from {source.key}", "the bytes there are not those we wrote"
                )
            return UploadedPart(ref, result["ETag"])

        return await self._run(f"copy part {ref.number} of", upload.key, work)

    async def list_parts(self, upload: Upload) -> dict[int, UploadedPart]:
        def work() -> dict[int, UploadedPart]:
            found: dict[int, UploadedPart] = {}
            pages = self._client.get_paginator("list_parts").paginate(
                **self._at(upload.key), UploadId=upload.upload_id
            )
            for page in pages:
                for row in page.get("Parts", []):
                    crc32 = _decode_crc32(row.get("ChecksumCRC32")) or 0
                    ref = PartRef(row["PartNumber"], 0, row["Size"], crc32)
                    found[ref.number] = UploadedPart(ref, row["ETag"])
            return found

        return await self._run("list the parts of", upload.key, work)

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart], crc32: int) -> ObjectInfo:
        checked = upload.checked
        rows: list[dict[str, Any]] = [
            {"PartNumber": part.ref.number, "ETag": part.etag}
            | ({"ChecksumCRC32": _encode_crc32(part.ref.crc32)} if checked else {})
            for part in parts
        ]
        asked = self._at(upload.key) | {"UploadId": upload.upload_id, "MultipartUpload": {"Parts": rows}}
        if checked:
            asked |= {"ChecksumCRC32": _encode_crc32(crc32), "ChecksumType": "FULL_OBJECT"}
        size = sum(part.ref.size_bytes for part in parts)

        def work() -> ObjectInfo:
            answer = self._client.complete_multipart_upload(**asked)
            return ObjectInfo(upload.key, size, answer["ETag"], 0.0)

        return await self._run("complete", upload.key, work)

    async def abort_upload(self, upload: Upload) -> None:
        asked = self._at(upload.key) | {"UploadId": upload.upload_id}
        with contextlib.suppress(UploadGone, ObjectNotFound):
            await self._run("abort", upload.key, lambda: self._client.abort_multipart_upload(**asked))

    async def list_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        def work() -> list[Upload]:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return [
                Upload(row["Key"][len(self._prefix) :], row["UploadId"], row["Initiated"].timestamp())
                for page in pages
                for row in page.get("Uploads", [])
            ]

        for upload in await self._run("list the uploads of", prefix, work):
            yield upload

    async def pour(
        self, key: str, body: Any, connection: Any, sink: Callable[[bytes], object], limit_bytes: int
    ) -> int:
        """Bytes of a body that `open` gave."""
        loop = asyncio.get_running_loop()
        pouring = loop.run_in_executor(
            self._threads, self._translated, "read", key, lambda: _pour(body, sink, limit_bytes)
        )
        return await to_its_end(pouring, interrupt=lambda: _interrupt(connection))


class _BodyReader:
    def __init__(
        self, store: S3ObjectStore, info: ObjectInfo, body: Any, connection: Any, expected_bytes: int
    ) -> None:
        self._store = store
        self._info = info
        self._body = body
        self._connection = connection
        self._left = expected_bytes

    @property
    def info(self) -> ObjectInfo:
        return self._info

    async def pour(self, sink: Callable[[bytes], object], limit_bytes: int) -> int:
        wanted = min(limit_bytes, self._left)
        if not wanted:
            return 0
        count = await self._store.pour(self._info.key, self._body, self._connection, sink, wanted)
        self._left -= count
        if count < wanted:
            detail = f"{self._left} bytes are missing"
            raise StoreUnavailable(self._store.name, f"read {self._info.key}", detail)
        return count


def _pour(body: Any, sink: Callable[[bytes], object], limit_bytes: int) -> int:
    poured = 0
    while poured < limit_bytes and (piece := body.read(min(_PIECE_BYTES, limit_bytes - poured))):
        sink(piece)
        poured += len(piece)
    return poured


def _interrupt(connection: Any) -> None:
    """Ends a read that another thread is waiting in."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # it has ended, or the connection has
        connection.shutdown()


def _info(key: str, answer: Any, size_bytes: int) -> ObjectInfo:
    whole = answer.get("ChecksumType") == "FULL_OBJECT"
    crc32 = _decode_crc32(answer.get("ChecksumCRC32")) if whole else None
    return ObjectInfo(key, size_bytes, answer["ETag"], answer["LastModified"].timestamp(), crc32)


def _encode_crc32(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _decode_crc32(text: str | None) -> int | None:
    if not text or "-" in text:  # a checksum of checksums says nothing about the whole
        return None
    return int.from_bytes(base64.b64decode(text), "big")


def _conforms(store: S3ObjectStore) -> MultipartStore:
    return store
