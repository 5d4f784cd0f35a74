"""``lapstrake facade``: serve, and tell container runtimes about it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import exit_codes
from cli.main import guarded, run
from cli.output import Output

if TYPE_CHECKING:
    from registry_facade.settings import FacadeSettings


@click.group()
def facade() -> None:
    """Run the registry facade; point container runtimes at it."""


def _pairs(values: tuple[str, ...]) -> Mapping[str, str] | None:
    pairs = [value.partition("=") for value in values]
    for name, separator, target in pairs:
        if not name or not separator or not target:
            raise click.UsageError(f"--upstream {name}{separator}{target}: write NAME=URL or NAME=oci:DIR")
    return {name: target for name, _, target in pairs} or None


@facade.command()
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, section [facade].")
@click.option(
    "--listen", metavar="HOST:PORT", help="Where clients pull; port 0 picks a free one. [127.0.0.1:5000]"
)
@click.option("--admin-listen", metavar="HOST:PORT", help="Where probes and metrics answer. [as --listen]")
@click.option("--cache-dir", metavar="DIR", help="Where blobs are kept. [~/.cache/lapstrake/facade]")
@click.option("--cache-max-bytes", metavar="SIZE", help="What the cache may occupy, e.g. 50GiB. [20GiB]")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="NAME=URL|NAME=oci:DIR",
    help="A registry that may be pulled through; repeatable.",
)
@click.option("--image-specs", metavar="DIR", help="Specs of composed images, <image-id>.json each.")
@click.option("--workers", metavar="N", help="Processes that serve. [1]")
def serve(config: Path | None, upstreams: tuple[str, ...], **flags: Any) -> int:
    """Serve images until SIGTERM: /v2/<repository>/..., composed ones at /v2/workspaces/<image-id>/...

    Every option is also a setting of the file and an environment variable, LAPSTRAKE_FACADE_<NAME>. Prints
    `listening on http://HOST:PORT` when ready.
    """
    from registry_facade.app import serve as serve_facade
    from registry_facade.app import serve_with_workers
    from registry_facade.settings import FacadeSettings
    from servicekit.logging import configure_logging
    from servicekit.settings import SettingsInvalid, load

    settings = load(FacadeSettings, "facade", file=config, flags={**flags, "upstreams": _pairs(upstreams)})
    if problems := settings.problems():
        raise SettingsInvalid(problems)
    configure_logging(level="info")

    def announce(addresses: list[tuple[str, int]]) -> None:
        for words, (host, port) in zip(("listening on", "administration on"), addresses, strict=False):
            click.echo(f"{words} http://{host}:{port}")

    if settings.workers > 1:
        return serve_with_workers(settings, announce, guarded)
    run(serve_facade(settings, announce))
    return 0


@facade.command()
@click.option("--registry", required=True, metavar="NAME", help="The registry to mirror, e.g. docker.io.")
@click.option("--facade", "url", metavar="URL", help="Where the facade is reached from the runtime.")
@click.option(
    "--client",
    type=click.Choice(["containerd", "podman", "skopeo", "cri-o", "docker"]),
    default="containerd",
    show_default=True,
    help="Who pulls: hosts.toml, registries.conf.d or daemon.json is written.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="containerd's certs.d, the registries.conf.d, or Docker's daemon.json. [the client's own, in /etc]",
)
@click.option("--ca", type=click.Path(path_type=Path), help="CA of an https facade, for containerd.")
@click.option("--undo", is_flag=True, help="Take back what was written, and restore what was there before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def hosts(
    registry: str, url: str | None, client: str, out: Path | None, ca: Path | None, undo: bool, as_json: bool
) -> None:
    """Tell a container runtime to pull NAME through the facade first, and the registry itself after it."""
    from ocikit.errors import StoreError
    from registry_facade import hosts as written

    kind = written.CLIENTS[client]
    place, output = out or written.DEFAULT_PLACES[kind], Output(as_json=as_json)
    try:
        if undo:
            removed = written.undo(kind, registry, place)
            output.result({"removed": removed}, "restored" if removed else "there was nothing to undo")
            return
        if url is None or not url.startswith(("http://", "https://")):
            raise click.UsageError("--facade must be an http:// or https:// URL")
        path = written.write(kind, written.Mirror(registry, url, ca), place)
    except OSError as error:
        raise StoreError(str(error.filename or place), error.strerror or str(error)) from error
    output.result({"written": str(path)}, f"wrote {path}")


def _cache_dir(config: Path | None, cache_dir: str | None) -> Path:
    """Of a facade on this machine, as its own settings have it."""
    from registry_facade.settings import FacadeSettings
    from servicekit.settings import load

    return load(FacadeSettings, "facade", file=config, flags={"cache_dir": cache_dir}).cache_dir


@facade.command()
@click.argument("digest")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, section [facade].")
@click.option("--cache-dir", metavar="DIR", help="The facade's cache. [~/.cache/lapstrake/facade]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(digest: str, config: Path | None, cache_dir: str | None, as_json: bool) -> None:
    """Tell what the cache knows of DIGEST: origin, verification, use, who refers to it, why it went."""
    from ocikit.digest import Digest
    from registry_facade.explaining import explain as explain_digest
    from registry_facade.explaining import shown

    found = run(explain_digest(_cache_dir(config, cache_dir), Digest.parse(digest)))
    lines = [f"{name}: {value}" for name, value in shown(found).items() if value not in (None, "", [])]
    Output(as_json=as_json).result(found, "\n".join(lines))


@facade.command()
@click.argument("digest")
@click.option("--undo", is_flag=True, help="Let it be evicted again.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, section [facade].")
@click.option("--cache-dir", metavar="DIR", help="The facade's cache. [~/.cache/lapstrake/facade]")
def pin(digest: str, undo: bool, config: Path | None, cache_dir: str | None) -> None:
    """Keep the blob DIGEST in the cache whatever comes."""
    from ocikit.digest import Digest
    from ocikit.errors import BlobNotFound
    from registry_facade.explaining import set_pin

    parsed = Digest.parse(digest)
    if not run(set_pin(_cache_dir(config, cache_dir), parsed, pinned=not undo)):
        raise BlobNotFound(parsed, "the cache")


@facade.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, section [facade].")
@click.option("--cache-dir", metavar="DIR", help="The facade's cache. [~/.cache/lapstrake/facade]")
@click.option("--ipfs-api", metavar="URL", help="The Kubo node's RPC address.")
@click.option("--ipfs-max-bytes", metavar="SIZE", help="Its budget. [nine tenths of its StorageMax]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gc(dry_run: bool, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Unpin what was pulled least recently from the IPFS node, when it nears its budget.

    A running facade does the same by itself.
    """
    from registry_facade.collecting import collect
    from registry_facade.settings import FacadeSettings
    from servicekit.settings import SettingsInvalid, load
    from servicekit.units import format_size

    settings = load(FacadeSettings, "facade", file=config, flags=flags)
    if not settings.ipfs_api:
        raise SettingsInvalid(["facade.ipfs_api: says which node; there is nothing to collect without one"])
    found = run(collect(settings, dry_run=dry_run))
    rows = [(item["digest"], format_size(item["size"]), item["last_pulled"]) for item in found["layers"]]
    lines = [
        f"{format_size(found['occupied_bytes'])} of {format_size(found['budget_bytes'])}: {found['why']}",
        *(
            f"{'would unpin' if dry_run else 'unpinned'} {digest}  {size}  last pulled {when}"
            for digest, size, when in rows
        ),
        f"{'would free' if dry_run else 'freed'} {format_size(found['freed_bytes'])}",
    ]
    Output(as_json=as_json).result(found, "\n".join(lines))


@facade.command()
@click.argument("images", nargs=-1, required=True, metavar="REF...")
@click.option("--platform", metavar="OS/ARCH", help="Of images for several platforms, this one. [the node's]")
@click.option("--limit-rate", metavar="SIZE/s", help="Bytes per second it may take. [unlimited]")
@click.option("--facade", "url", metavar="URL", help="Its administration address. [as the settings say]")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, section [facade].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def warm(
    images: tuple[str, ...],
    platform: str | None,
    limit_rate: str | None,
    url: str | None,
    config: Path | None,
    as_json: bool,
) -> int:
    """Have the running facade of this node fetch images ahead of their start, behind every real pull.

    REF is UPSTREAM/repository:tag, or workspaces/ID. Ends with status 3 when an image could not be had.
    """
    from registry_facade.settings import FacadeSettings
    from registry_facade.warming.client import warm as warm_by_api
    from servicekit.settings import load
    from servicekit.units import format_size, parse_rate

    output = Output(as_json=as_json)
    try:
        _ = parse_rate(limit_rate) if limit_rate is not None else None
    except ValueError as error:
        raise click.UsageError(f"--limit-rate: {error}") from None
    settings = load(FacadeSettings, "facade", file=config)
    address = url or _administration(settings)

    async def work() -> list[Mapping[str, Any]]:
        results = []
        async for item in warm_by_api(address, images, platform, limit_rate, settings.admin_token):
            results.append(item)
            output.say(
                f"{item['image']}: {item['error']}"
                if item["error"]
                else f"{item['image']}: fetched {item['fetched_blobs']} blobs, "
                f"{format_size(item['fetched_bytes'])}; there were {item['there_blobs']}, "
                f"{format_size(item['there_bytes'])}"
            )
        return results

    results = run(work())
    failed = sum(bool(item["error"]) for item in results) + len(images) - len(results)
    fields = {"images": results, "failed": failed}
    output.result(fields, f"{len(images) - failed} of {len(images)} images are in the cache")
    return exit_codes.INCOMPLETE if failed else exit_codes.OK


def _administration(settings: "FacadeSettings") -> str:
    host, port = settings.admin_listen or settings.listen
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 (an address that listens everywhere is reached here)
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
