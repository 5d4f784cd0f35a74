"""What goes beside an image for those who ask where it comes from: an SPDX list of packages, test results.

Both are OCI artifacts that refer to the image (``subject``), pushed with oras: a registry lists them among
the image's referrers.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from builder.chunk_tests import TestResult
from builder.contents import Contents
from builder.merge_files import dpkg_packages
from builder.names import fallback_tag
from ocikit import media_types
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.distribution.repository import RegistryRepository
from ocikit.errors import RegistryError
from ocikit.manifest import Index, Manifest, RawManifest

SPDX_MEDIA_TYPE = "application/spdx+json"
RESULTS_MEDIA_TYPE = "application/vnd.lapstrake.test-results.v1+json"
_STATUS = "var/lib/dpkg/status"
_IMAGE = "SPDXRef-image"


def spdx_document(name: str, image: Descriptor, layers: Sequence[tuple[str, Contents]]) -> bytes:
    """SPDX 2.3 as JSON: an image contains chunks, and they Debian packages. The same bytes every time.

    A package is its chunk's which first has it in this version; ``layers`` are from the bottom up.
    """
    packages = [_package(_IMAGE, name, str(image.digest))]
    related = [("SPDXRef-DOCUMENT", "DESCRIBES", _IMAGE)]
    debian: dict[str, tuple[str, Mapping[str, object]]] = {}
    for at, (chunk, contents) in enumerate(layers):
        holder = f"SPDXRef-chunk-{at}"
        packages.append(_package(holder, f"chunk {chunk}", "NOASSERTION"))
        related.append((_IMAGE, "CONTAINS", holder))
        for found in dpkg_packages(contents.merged.get(_STATUS, b"")):
            made = _debian_package(*found)
            key = str(made["SPDXID"])
            if key not in debian or debian[key][1] != made:
                debian[key] = holder, made
    packages += [made for _, made in debian.values()]
    related += [(holder, "CONTAINS", key) for key, (holder, _) in debian.items()]
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://spdx.org/spdxdocs/lapstrake-{image.digest.encoded}",
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: lapstrake"]},
        "packages": packages,
        "relationships": [
            {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
            for one, kind, other in related
        ],
    }
    return json.dumps(document, sort_keys=True, indent=1).encode()


def _package(key: str, name: str, version: str) -> Mapping[str, object]:
    return {
        "SPDXID": key,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
    }


def _debian_package(name: str, version: str, architecture: str) -> Mapping[str, object]:
    place = {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}",
    }
    key = f"SPDXRef-deb-{name}-{architecture}".replace("+", "-")
    return {**_package(key, name, version), "externalRefs": [place]}


def results_document(results: Sequence[TestResult]) -> bytes:
    """Which tests an image has passed."""
    tests = [
        {
            "chunk": result.case.chunk,
            "description": result.case.test.description,
            "outcome": "skipped" if result.not_run else "failed" if result.failure else "passed",
        }
        for result in results
    ]
    return json.dumps({"format_version": 1, "tests": tests}, sort_keys=True, indent=1).encode()


async def ensure_listed(repository: RegistryRepository, subject: Digest, referrer: RawManifest) -> None:
    """Lists ``referrer`` under the fallback tag where the registry has no referrers API of its own.

    distribution-spec v1.1, "Pushing Manifests with Subject". Two processes that do this for one subject at
    the same time may lose one of the entries, as the specification warns.
    """
    index = await repository.client.referrers(repository.repository, subject)
    if any(item.digest == referrer.digest for item in index.manifests):
        return
    manifest = Manifest.parse(referrer.data, referrer.media_type)
    described = dataclasses.replace(
        referrer.descriptor,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        annotations=manifest.annotations,
    )
    listed = Index((*index.manifests, described)).dump()
    await repository.put_manifest(RawManifest.of(media_types.OCI_INDEX, listed), fallback_tag(subject))


def push_referrer(repository: RegistryRepository, subject: Descriptor, data: bytes, media_type: str) -> str:
    """The tag it was pushed under. Blocking. Raises RegistryError."""
    import oras.client  # noqa: PLC0415 (brings requests, which no other command needs)
    import oras.oci  # noqa: PLC0415

    host = repository.client.host
    client = oras.client.OrasClient(hostname=host.name, insecure=host.origin.startswith("http:"))
    kind = "spdx" if media_type == SPDX_MEDIA_TYPE else "tests"
    tag = f"{subject.digest.encoded[:32]}--{kind}"
    target = f"{repository.title}:{tag}"
    with tempfile.TemporaryDirectory() as directory:
        file, config = Path(directory, f"{kind}.json"), Path(directory, "config.json")
        file.write_bytes(data)
        config.write_text("{}", encoding="utf-8")
        try:
            client.push(
                target=target,
                files=[f"{file}:{media_type}"],
                manifest_config=f"{config}:{media_type}",
                subject=oras.oci.Subject(subject.media_type, str(subject.digest), subject.size),
                disable_path_validation=True,
                quiet=True,
            )
        except (ValueError, OSError) as error:  # oras has no errors of its own; requests' are OSErrors
            raise RegistryError("PUT", target, 0, str(error)[:300]) from error
    return tag
