"""The SPDX document of an image."""

import json

from builder.attestations import spdx_document
from builder.contents import Contents
from ocikit import media_types
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest

STATUS = "var/lib/dpkg/status"


def status(*packages: tuple[str, str]) -> Contents:
    text = "".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n"
        for name, version in packages
    )
    return Contents({}, {STATUS: text.encode()})


def test_an_image_contains_chunks_and_each_package_is_the_chunks_that_brought_its_version():
    layers = [
        ("base", status(("libc6", "2.36"), ("libstdc++6", "12"))),
        ("jq", status(("libc6", "2.36"), ("libstdc++6", "12"), ("jq", "1:1.6+x~y"))),
        ("gcc", status(("libc6", "2.37"), ("libstdc++6", "12"))),
    ]
    image = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"x"), 1)
    document = json.loads(spdx_document("full", image, layers))
    names = {item["SPDXID"]: item["name"] for item in document["packages"]}
    assert len(names) == len(document["packages"])
    related = {
        (
            names.get(item["spdxElementId"], "document"),
            item["relationshipType"],
            names[item["relatedSpdxElement"]],
        )
        for item in document["relationships"]
    }
    assert related == {
        ("document", "DESCRIBES", "full"),
        *(("full", "CONTAINS", f"chunk {chunk}") for chunk in ("base", "jq", "gcc")),
        ("chunk base", "CONTAINS", "libstdc++6"),
        ("chunk jq", "CONTAINS", "jq"),
        ("chunk gcc", "CONTAINS", "libc6"),
    }
    places = [
        item["externalRefs"][0]["referenceLocator"] for item in document["packages"] if "externalRefs" in item
    ]
    assert "pkg:deb/debian/jq@1%3A1.6%2Bx~y?arch=amd64" in places
