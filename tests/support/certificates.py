"""Self-signed certificates for loopback, made by openssl."""

import subprocess
from pathlib import Path

from tests.support.components import program, require


def make_certificate(directory: Path, name: str = "server") -> tuple[Path, Path]:
    """(certificate, key), PEM, of 127.0.0.1 and localhost."""
    require("openssl")
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    argv: list[str | Path] = [program("openssl"), "req", "-x509", "-newkey", "ec", "-nodes"]
    argv += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"]
    argv += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return certificate, key
