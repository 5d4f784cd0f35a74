import ssl
import subprocess
from pathlib import Path

import pytest
from aiohttp import web

from ocikit.distribution.transport import Transport
from ocikit.errors import ConnectFailed
from servicekit.lifecycle import Listener, listening
from tests.support.components import program


@pytest.mark.component("openssl")
async def test_an_untrusted_certificate_is_said_to_be_one(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [program("openssl"), *request, *subject, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
        timeout=30,
    )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    listener = Listener(web.Application(), "127.0.0.1", 0, tls=tls)
    async with listening([listener], drain_s=0) as [(_, port)], Transport() as transport:
        with pytest.raises(ConnectFailed, match=f"cannot reach localhost:{port}: its certificate is refused"):
            async with transport.send("GET", f"https://localhost:{port}/"):
                pass
