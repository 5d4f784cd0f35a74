"""gitpod's ImageSpec message, by its field numbers, as a spec of ours. Pure.

Read from the wire format itself (protobuf.dev, "Encoding"): the message is small and no longer changes, and a
generated module would tie us to one version of the protobuf runtime.
"""

from collections.abc import Collection, Iterator, Sequence

from ocikit import media_types
from ocikit.digest import Digest
from ocikit.errors import OciError
from registry_facade.errors import ImageSpecInvalid
from registry_facade.image_spec import (
    LAYER_TYPES,
    ImageLayers,
    ImageRef,
    ImageSpec,
    InlineTar,
    LayerSpec,
    TarLayer,
    parse_image_ref,
)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Value = int | bytes


def encode_request(image_id: str) -> bytes:
    """GetImageSpecRequest: ``id`` = 1."""
    data = image_id.encode()
    return b"\x0a" + _varint(len(data)) + data


def decode_response(data: bytes, image_id: str, upstreams: Collection[str]) -> ImageSpec:
    """GetImageSpecResponse: ``spec`` = 1. Raises ImageSpecInvalid."""
    try:
        message = _texts(data, 1)
        return _spec(message[-1] if message else b"", upstreams)
    except (ValueError, OciError) as error:  # InvalidInput is a ValueError too
        raise ImageSpecInvalid(image_id, [str(error)]) from error


def _spec(data: bytes, upstreams: Collection[str]) -> ImageSpec:
    """``base_ref`` 1, ``ide_ref`` 2, ``content_layer`` 3, ``supervisor_ref`` 5, ``ide_layer_ref`` 7.

    The order of layers is that of gitpod's own facade.
    """
    base = _texts(data, 1)
    if not base or not base[-1]:
        raise ValueError("base_ref is missing")
    refs = [*_texts(data, 2)[-1:], *_texts(data, 5)[-1:], *_texts(data, 7)]
    layers: list[LayerSpec] = [ImageLayers(_image(ref, upstreams)) for ref in refs if ref]
    layers += [_content(item) for item in _texts(data, 3)]
    return ImageSpec(_image(base[-1], upstreams), tuple(layers), gitpod_compatible=True)


def _image(ref: bytes, upstreams: Collection[str]) -> ImageRef:
    text = ref.decode()
    if text.startswith("oci:"):
        raise ValueError("a service names no directories of this machine")
    return parse_image_ref(text, upstreams)


def _content(data: bytes) -> LayerSpec:
    """``remote`` = 1, ``direct`` = 2; of a oneof the last counts."""
    chosen = [(number, value) for number, value in fields(data) if number in {1, 2}]
    if not chosen or not isinstance(chosen[-1][1], bytes):
        raise ValueError("a content_layer is neither remote nor direct")
    number, message = chosen[-1]
    assert isinstance(message, bytes)  # noqa: S101 (seen above)
    if number == 2:
        return InlineTar(b"".join(_texts(message, 1)[-1:]))
    return _remote(message)


def _remote(data: bytes) -> TarLayer:
    """``url`` = 1, ``digest`` = 2, ``diff_id`` = 3, ``media_type`` = 4, ``size`` = 5."""
    url, digest, diff_id, media_type = (
        b"".join(_texts(data, number)[-1:]).decode() for number in (1, 2, 3, 4)
    )
    if not url.startswith("https://"):
        raise ValueError("the url of a remote content_layer must begin with https://")
    if media_type not in {"", *LAYER_TYPES}:
        raise ValueError(f"a remote content_layer is of type {media_type!r}")
    sizes = [value for number, value in fields(data) if number == 5 and isinstance(value, int)]
    parsed = Digest.parse(digest)
    if diff_id in {"", digest}:  # then it is not compressed
        return TarLayer(url, parsed, parsed, media_type or media_types.OCI_LAYER, *sizes[-1:])
    return TarLayer(url, parsed, Digest.parse(diff_id), media_type, *sizes[-1:])


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field of a message. Raises ValueError for what is none."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("not a message: field 0")
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"not a message: wire type {kind}")
        if at + size > len(data):
            raise ValueError("not a message: it ends early")
        yield number, data[at : at + size]
        at += size


def _texts(data: bytes, wanted: int) -> Sequence[bytes]:
    return [value for number, value in fields(data) if number == wanted and isinstance(value, bytes)]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("not a message: it ends early")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("not a message: a number of more than ten bytes")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
