"""The distribution protocol against one registry: pull, push, mount, referrers, tags.

Requests are authorised on demand, retried here and nowhere else, and redirected only where it is safe:
credentials never follow to another host, and TLS is never given up.
"""

import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from urllib.parse import urljoin, urlsplit
from weakref import WeakValueDictionary

from ocikit import media_types
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.distribution.auth import Authorizer, pull_scope, push_scope
from ocikit.distribution.credentials import Anonymous, CredentialProvider
from ocikit.distribution.protocol import error_for
from ocikit.distribution.transport import Response, Transport
from ocikit.errors import (
    Denied,
    DigestMismatch,
    InvalidManifest,
    InvalidRange,
    NotFound,
    ReadFailed,
    RegistryError,
)
from ocikit.manifest import MAX_MANIFEST_BYTES, Index, RawManifest, detect_media_type
from ocikit.ranges import ByteRange, ContentRange
from servicekit.backoff import Backoff, retry

_MAX_REDIRECTS = 5
_LINK_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_JSON_BYTES = 4 << 20

Body = bytes | Callable[[], AsyncIterable[bytes]] | None
"""What is sent: bytes, or a function that starts the stream anew for each attempt."""


@dataclasses.dataclass(frozen=True, slots=True)
class RegistryHost:
    """Where a registry is reached: its name in references and the origin its requests go to."""

    name: str
    origin: str

    @classmethod
    def of(cls, name: str) -> "RegistryHost":
        """Plain HTTP for loopback names only, as every client has it; Docker Hub's API lives elsewhere."""
        host = name.rpartition(":")[0] or name
        if name == "docker.io":
            return cls(name, "https://registry-1.docker.io")
        loopback = host in {"localhost", "127.0.0.1", "[::1]"} or host.endswith(".localhost")
        return cls(name, f"{'http' if loopback else 'https'}://{name}")


class RegistryClient:
    """Safe for concurrent use; the transport is its owner's to close.

    ``check_redirect`` may refuse a target by raising an OciError (the facade's SSRF wall).
    """

    def __init__(
        self,
        host: RegistryHost,
        transport: Transport,
        provider: CredentialProvider | None = None,
        *,
        backoff: Backoff = Backoff(),
        check_redirect: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.host = host
        self._transport = transport
        self._authorizer = Authorizer(host.name, host.origin, transport, provider or Anonymous())
        self._backoff = backoff
        self._uploads: WeakValueDictionary[tuple[str, Digest], asyncio.Lock] = WeakValueDictionary()
        self._check_redirect = check_redirect

    def with_credentials(self, provider: CredentialProvider) -> "RegistryClient":
        """The same registry in somebody else's name; nothing learnt in one name is used in the other."""
        return RegistryClient(
            self.host,
            self._transport,
            provider,
            backoff=self._backoff,
            check_redirect=self._check_redirect,
        )

    # ----- pull -----

    async def resolve(self, repository: str, reference: str | Digest) -> Descriptor:
        """By HEAD; by GET where a registry leaves out what HEAD must say. Raises ManifestNotFound."""
        url = self._url(repository, "manifests", reference)
        headers = {"Accept": media_types.ACCEPTED}
        async with self._request("HEAD", url, repository, reference, headers=headers) as response:
            digest, length = (
                response.headers.get("Docker-Content-Digest"),
                response.headers.get("Content-Length"),
            )
            media_type = response.headers.get("Content-Type", "").partition(";")[0]
        if (
            digest
            and length
            and length.isdecimal()
            and media_type in media_types.MANIFESTS | media_types.INDEXES
        ):
            return Descriptor(media_type, Digest.parse(digest), int(length))
        return (await self.manifest(repository, reference)).descriptor

    async def manifest(self, repository: str, reference: str | Digest) -> RawManifest:
        """Verified when asked by digest, and against what the registry says of itself."""
        url = self._url(repository, "manifests", reference)
        headers = {"Accept": media_types.ACCEPTED}

        async def fetch() -> RawManifest:
            request = self._request("GET", url, repository, reference, headers=headers, retrying=False)
            async with request as response:
                data = await response.read(MAX_MANIFEST_BYTES)
                announced = response.headers.get("Content-Type", "").partition(";")[0]
                stated = response.headers.get("Docker-Content-Digest")
            if len(data) > MAX_MANIFEST_BYTES:
                raise InvalidManifest(f"more than {MAX_MANIFEST_BYTES} bytes", f"{repository}:{reference}")
            expected = (
                reference if isinstance(reference, Digest) else Digest.parse(stated) if stated else None
            )
            digest = Digest.of(data, expected.algorithm if expected else "sha256")
            if expected is not None and digest != expected:
                raise DigestMismatch(expected, digest, f"{self.host.name}/{repository}")
            return RawManifest(detect_media_type(data, announced), data, digest)

        return await retry(fetch, backoff=self._backoff)

    async def stat_blob(self, repository: str, digest: Digest) -> Descriptor:
        """Raises BlobNotFound."""
        url = self._url(repository, "blobs", digest)
        async with self._request("HEAD", url, repository, digest) as response:
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise RegistryError("HEAD", response.url, response.status, "no Content-Length")
            return Descriptor("application/octet-stream", digest, int(length))

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: str, digest: Digest, byte_range: ByteRange | None = None
    ) -> AsyncIterator["BlobResponse"]:
        """One GET, not resumed: `ocikit.distribution.repository` does that.

        Raises BlobNotFound or InvalidRange.
        """
        url = self._url(repository, "blobs", digest)
        headers = {"Range": byte_range.header()} if byte_range is not None else {}
        expect = (200, 206, 416) if byte_range is not None else (200,)
        async with self._request("GET", url, repository, digest, headers=headers, expect=expect) as response:
            if byte_range is not None and response.status == 416:
                raise InvalidRange(byte_range.header(), (await self.stat_blob(repository, digest)).size)
            yield BlobResponse(response, _content_range(response, byte_range))

    async def tags(self, repository: str) -> Sequence[str]:
        """All pages."""
        url: str | None = f"{self.host.origin}/v2/{repository}/tags/list?n=1000"
        names: list[str] = []
        while url is not None:
            async with self._request("GET", url, repository, "") as response:
                names += (await _json(response)).get("tags") or []
                link = _LINK_NEXT.search(response.headers.get("Link", ""))
            url = urljoin(url, link[1]) if link is not None else None
            if url is not None and not url.startswith(f"{self.host.origin}/"):
                raise Denied(self.host.name, repository, "its tag list leads to another host")
        return sorted(names)

    async def referrers(self, repository: str, digest: Digest) -> Index:
        """By the referrers API, else by the fallback tag (distribution-spec v1.1, "Listing Referrers")."""
        url = self._url(repository, "referrers", digest)
        try:
            async with self._request("GET", url, repository, digest) as response:
                return Index.parse(await response.read(MAX_MANIFEST_BYTES), media_types.OCI_INDEX)
        except (NotFound, RegistryError) as error:
            if isinstance(error, RegistryError) and error.status not in {400, 405}:
                raise
        try:
            raw = await self.manifest(repository, f"{digest.algorithm}-{digest.encoded}")
        except NotFound:
            return Index(())
        return Index.parse(raw.data, raw.media_type)

    # ----- push -----

    async def push_blob(self, repository: str, digest: Digest, size: int, body: Body) -> None:
        """Uploads unless it is there already. ``body`` may be started several times."""
        # one at a time for each blob: registries get confused by two uploads of the same, and one is enough
        async with self._uploads.setdefault((repository, digest), asyncio.Lock()):
            try:
                await self.stat_blob(repository, digest)
            except NotFound:
                await self._upload(repository, digest, size, body)

    async def _upload(self, repository: str, digest: Digest, size: int, body: Body) -> None:
        async def upload() -> None:
            url = f"{self.host.origin}/v2/{repository}/blobs/uploads/"
            async with self._request("POST", url, repository, "", push=True, expect=(202,)) as response:
                location = urljoin(url, response.headers.get("Location", ""))
            await self._finish_upload(repository, location, digest, size, body)

        await retry(upload, backoff=self._backoff)

    async def _finish_upload(
        self, repository: str, location: str, digest: Digest, size: int, body: Body
    ) -> None:
        url = f"{location}{'&' if urlsplit(location).query else '?'}digest={digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        request = self._request(
            "PUT", url, repository, digest, headers=headers, body=body, push=True, expect=(201,)
        )
        async with request:
            pass

    async def mount_blob(self, repository: str, digest: Digest, source_repository: str) -> bool:
        """Cross-repository mount; False when the registry would rather have an upload."""
        url = f"{self.host.origin}/v2/{repository}/blobs/uploads/?mount={digest}&from={source_repository}"
        scopes = (push_scope(repository), pull_scope(source_repository))
        async with self._request(
            "POST", url, repository, digest, push=True, expect=(201, 202), scopes=scopes
        ) as response:
            mounted = response.status == 201
            location = response.headers.get("Location", "")
        if not mounted and location:
            with contextlib.suppress(RegistryError, NotFound, Denied):
                async with self._request(
                    "DELETE", urljoin(url, location), repository, "", push=True, expect=(204,)
                ):
                    pass
        return mounted

    async def push_manifest(self, repository: str, raw: RawManifest, reference: str | Digest) -> None:
        url = self._url(repository, "manifests", reference)
        headers = {"Content-Type": raw.media_type}
        async with self._request(
            "PUT", url, repository, reference, headers=headers, body=raw.data, push=True, expect=(201, 200),
            repeatable=True,
        ):  # fmt: skip
            pass

    # ----- one request -----

    def _url(self, repository: str, kind: str, reference: str | Digest) -> str:
        return f"{self.host.origin}/v2/{repository}/{kind}/{reference}"

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        url: str,
        repository: str,
        subject: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        push: bool = False,
        expect: Sequence[int] = (200, 206),
        scopes: Sequence[str] | None = None,
        retrying: bool = True,
        repeatable: bool = False,
    ) -> AsyncIterator[Response]:
        """Authorised, redirected, and checked; bodies of unexpected answers become errors.

        What changes nothing is repeated here unless the caller does it (``retrying`` False), and so is what
        changes nothing the second time (``repeatable``); an upload starts over as a whole.
        """
        asked = tuple(scopes or ((push_scope if push else pull_scope)(repository),))
        async with contextlib.AsyncExitStack() as stack:

            async def attempt() -> Response:
                response = await self._authorized(stack, method, url, asked, headers or {}, body)
                if response.status not in expect:
                    text = await response.error_text()
                    raise error_for(self.host.name, method, response, repository, subject, text)
                return response

            may_repeat = repeatable or (retrying and method in {"GET", "HEAD"})
            attempts = self._backoff.attempts if may_repeat else 1
            response = await retry(attempt, backoff=dataclasses.replace(self._backoff, attempts=attempts))
            yield response

    async def _authorized(
        self,
        stack: contextlib.AsyncExitStack,
        method: str,
        url: str,
        scopes: Sequence[str],
        headers: Mapping[str, str],
        body: Body,
    ) -> Response:
        known = self._authorizer.header(scopes)
        response = await self._follow(stack, method, url, _with_authorization(headers, known), body)
        if response.status != 401:
            return response
        self._authorizer.forget(scopes)
        fresh = await self._authorizer.answer(response, scopes)
        return await self._follow(stack, method, url, _with_authorization(headers, fresh), body)

    async def _follow(
        self, stack: contextlib.AsyncExitStack, method: str, url: str, headers: Mapping[str, str], body: Body
    ) -> Response:
        for _ in range(_MAX_REDIRECTS):
            data = body() if callable(body) else body
            response = await stack.enter_async_context(
                self._transport.send(method, url, headers=headers, data=data)
            )
            if response.status not in {301, 302, 303, 307, 308} or method not in {"GET", "HEAD"}:
                return response
            target = self._redirect_target(url, response)
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise Denied(self.host.name, urlsplit(url).path, "it redirects from TLS to plain HTTP")
            self._check_redirect(target)
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                headers = {key: value for key, value in headers.items() if key != "Authorization"}
            url = target
        raise RegistryError(method, url, response.status, "too many redirects")

    def _redirect_target(self, url: str, response: Response) -> str:
        location = response.headers.get("Location", "")
        try:
            target = urljoin(url, location)
            if urlsplit(target).hostname and location:
                return target
        except ValueError:  # what cannot be split, such as an unclosed IPv6 address
            pass
        raise RegistryError("GET", response.url, response.status, "it redirects to nowhere")


class BlobResponse:
    """The body of a blob answer and the range of the blob it carries."""

    def __init__(self, response: Response, content_range: ContentRange) -> None:
        self._response = response
        self.content_range = content_range

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises ReadFailed or TimedOut when fewer bytes come than were promised."""
        left = self.content_range.length
        async for data in self._response.pieces():
            left -= len(data)
            if left < 0:
                raise ReadFailed(self._response.url, "the registry sent more bytes than it announced")
            yield data
        if left:
            raise ReadFailed(self._response.url, f"{left} bytes are missing")


def _content_range(response: Response, asked: ByteRange | None) -> ContentRange:
    length = response.headers.get("Content-Length", "")
    if response.status == 206:
        given = ContentRange.parse_header(response.headers.get("Content-Range", ""))
        if given is None or asked is None or given != asked.resolve(given.size):
            raise RegistryError(
                "GET", response.url, 206, f"Content-Range {response.headers.get('Content-Range')!r}"
            )
        return given
    if not length.isdecimal():
        raise RegistryError("GET", response.url, response.status, "no Content-Length")
    return ContentRange(0, int(length), int(length))


def _with_authorization(headers: Mapping[str, str], value: str | None) -> Mapping[str, str]:
    return headers if value is None else {**headers, "Authorization": value}


async def _json(response: Response) -> Mapping[str, Sequence[str]]:

    try:
        document = json.loads(await response.read(_JSON_BYTES))
    except ValueError as error:
        raise RegistryError("GET", response.url, response.status, "not JSON") from error
    return document if isinstance(document, dict) else {}
