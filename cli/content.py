"""``lapstrake content``: the service of a node."""

from pathlib import Path
from typing import Any

import click

from cli.main import run


@click.group()
def content() -> None:
    """Run the content service of a node."""


@content.command()
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, section [content].")
@click.option(
    "--listen", metavar="HOST:PORT", help="Where the API answers; port 0 picks a free one. [127.0.0.1:8090]"
)
@click.option("--store", metavar="STORE", help="s3://bucket/prefix or file:///dir.")
@click.option("--s3-endpoint", metavar="URL", help="An S3 server that is not Amazon's.")
@click.option("--workspaces-root", metavar="DIR", help="The directory below which all workspaces are.")
def serve(config: Path | None, **flags: Any) -> None:
    """Back up and restore workspaces on request until SIGTERM; the API describes itself at /openapi.json.

    Every option is also a setting of the file and an environment variable, LAPSTRAKE_CONTENT_<NAME>; so are
    tokens, limits and pools; SIGHUP reads tokens, rates and keep rules again. Prints `listening on
    http://HOST:PORT` when ready.
    """
    from content.app import serve as serve_content
    from content.settings import ContentSettings
    from servicekit.logging import configure_logging
    from servicekit.settings import load

    def settings() -> ContentSettings:
        return load(ContentSettings, "content", file=config, flags=flags)

    started_with = settings()
    scheme = "https" if started_with.tls_certificate is not None else "http"
    configure_logging(level="info")

    def announce(addresses: list[tuple[str, int]]) -> None:
        for host, port in addresses:
            click.echo(f"listening on {scheme}://{host}:{port}")

    run(serve_content(started_with, announce, reload=settings))
