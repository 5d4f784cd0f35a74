"""Settings of the registry facade, section ``[facade]``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ocikit.descriptor import Platform
from ocikit.distribution.wall import parse_place
from registry_facade.digest_index.opening import INDEX_ACCEPTS, is_digest_index
from registry_facade.peers.membership import is_peer_address
from servicekit.secrets import Secret
from servicekit.settings import (
    BOOLEAN,
    DURATION,
    INTEGER,
    PATH,
    RATE,
    SECRET,
    SIZE,
    STRING,
    STRING_MAP,
    STRINGS,
    host_port,
    one_of,
    setting,
)


@dataclasses.dataclass(frozen=True, slots=True)
class LocalSettings:
    """A namespace that takes pushes."""

    enabled: bool = setting(BOOLEAN, False, "Whether images can be pushed to this registry itself.")
    namespace: str = setting(STRING, "local", "The first segment of the names of pushed images.")
    root: Path | None = setting(PATH, None, "Where they are kept; default: in cache_dir.")


@dataclasses.dataclass(frozen=True, slots=True)
class SpecServiceSettings:
    """A service that knows what images are made of."""

    url: str = setting(
        STRING,
        "",
        "Where GET <url>/<image-id> answers with a spec, or grpc(s)://HOST:PORT of gitpod's protocol.",
    )
    token_file: Path | None = setting(PATH, None, "File with the bearer token to show it; read each time.")
    ca: Path | None = setting(PATH, None, "PEM file with the CA of the service; default: the system's.")
    certificate: Path | None = setting(PATH, None, "PEM file with the certificate to show it (mTLS).")
    key: Path | None = setting(PATH, None, "PEM file with the key of certificate.")
    timeout_s: float = setting(
        DURATION, 5.0, "How long it may take to connect, to answer, and between bytes."
    )


@dataclasses.dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may pull."""

    mode: str = setting(
        one_of("anonymous", "tokens", "delegated"),
        "anonymous",
        "anonymous: everybody; tokens: who shows one of tokens_file; delegated: also whom the upstream lets.",
    )
    tokens_file: Path | None = setting(
        PATH, None, "JSON file of tokens and the repositories they are for; read anew when it changes."
    )
    ttl_s: float = setting(DURATION, 300.0, "How long it is believed that a caller may read an image.")
    grace_s: float = setting(
        DURATION, 3600.0, "How long it is believed while the upstream cannot be asked again."
    )


@dataclasses.dataclass(frozen=True, slots=True)
class WarmSettings:
    """Images that are in the cache before anybody asks for them."""

    images: tuple[str, ...] = setting(
        STRINGS, (), "References to pre-pull at the start and then regularly, behind every real pull."
    )
    every_s: float = setting(DURATION, 3600.0, "How long after one round the next begins.")
    platform: str = setting(
        STRING, "", "Of images for several platforms, the one to pre-pull; default: this machine's."
    )
    limit_rate: int = setting(RATE, 0, "Bytes per second that pre-pulling may take; 0: no limit.")

    def problems(self) -> list[str]:
        found = []
        if self.every_s <= 0:
            found.append("facade.warm.every_s: accepts more than nothing")
        try:
            _ = Platform.parse(self.platform) if self.platform else None
        except ValueError as error:
            found.append(f"facade.warm.platform: {error}")
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class FacadeSettings:
    """Everything ``lapstrake facade serve`` can be told."""

    listen: tuple[str, int] = setting(
        host_port(default_port=5000), ("127.0.0.1", 5000), "Where clients pull; port 0 picks a free one."
    )
    admin_listen: tuple[str, int] | None = setting(
        host_port(default_port=5001),
        None,
        "Where probes, metrics and administration answer; default: listen.",
    )
    cache_dir: Path = setting(
        PATH, Path("~/.cache/lapstrake/facade").expanduser(), "Blobs, manifests and what is known about them."
    )
    cache_max_bytes: int = setting(SIZE, 20 << 30, "What the blobs in cache_dir may occupy.")
    upstreams: Mapping[str, str] = setting(
        STRING_MAP, {}, "Registries that may be pulled through: NAME=URL or NAME=oci:DIR."
    )
    default_upstream: str = setting(
        STRING, "", "The upstream for requests that name none; default: the only one configured."
    )
    snapshot_store: str = setting(
        STRING, "", "URL below which the content service's objects lie, for layers of workspace snapshots."
    )
    snapshot_token: Secret = setting(SECRET, Secret(""), "Bearer token for snapshot_store, if it takes one.")
    image_specs: Path | None = setting(PATH, None, "Directory of image specs, one <image-id>.json each.")
    lazy_layers: str = setting(
        one_of("none", "estargz", "zstd:chunked"),
        "none",
        "What layers made of an image spec's files are: plain tars, eStargz, or zstd:chunked.",
    )
    soci: bool = setting(
        BOOLEAN, False, "Whether gzip layers are indexed, and composed images name the index, for SOCI."
    )
    workers: int = setting(INTEGER, 1, "Processes that serve; they share the port and the cache.")
    drain_s: float = setting(DURATION, 20.0, "How long running requests may take to end after SIGTERM.")
    docker_config: Path | None = setting(
        PATH, None, "docker config.json with the credentials for upstreams; read anew when it changes."
    )
    ipfs_api: str = setting(STRING, "", "Kubo's RPC address, e.g. http://127.0.0.1:5001; empty: no IPFS.")
    ipfs_max_bytes: int = setting(
        SIZE, 0, "What the Kubo node's repository may occupy; 0: nine tenths of its own Datastore.StorageMax."
    )
    ipfs_gateways: tuple[str, ...] = setting(
        STRINGS, (), "Read-only gateways to ask for CIDs, e.g. http://ipfs.internal:8080."
    )
    digest_index: str = setting(
        STRING, "", "Where digest -> CID is kept: sqlite:PATH or redis://HOST:PORT; default: in cache_dir."
    )
    digest_index_password: Secret = setting(SECRET, Secret(""), "Of the Redis named by digest_index.")
    upstream_idle_s: float = setting(
        DURATION,
        30.0,
        "How long an upstream may send nothing before its request is given up and continued anew.",
    )
    tag_fresh_s: float = setting(DURATION, 60.0, "How long a tag is believed without asking.")
    tag_revalidate_s: float = setting(
        DURATION, 600.0, "How long an older tag is still served at once, while it is asked for again."
    )
    stale_budget_s: float = setting(
        DURATION, 1.5, "How long an upstream may take to confirm a tag before the known answer is served."
    )
    unshared_images: tuple[str, ...] = setting(
        STRINGS, (), "UPSTREAM/REPOSITORY patterns of images whose layers no peer and no IPFS node is given."
    )
    public_images: tuple[str, ...] = setting(
        STRINGS, (), "Patterns of images that gateways, and IPFS nodes on the public network, may know of."
    )
    peers: tuple[str, ...] = setting(
        STRINGS, (), "Other facades: http://HOST:PORT, or dns+http://NAME:PORT for all addresses of a name."
    )
    peer_url: str = setting(STRING, "", "How the peers address this facade; needed where peers are named.")
    peer_token: Secret = setting(SECRET, Secret(""), "What peers prove themselves with, the same for all.")
    scrub_age_s: float = setting(
        DURATION, 7 * 86400.0, "How old the last verification of a cached blob may be before it is repeated."
    )
    linger_s: float = setting(DURATION, 10.0, "How long a download goes on after its last client has gone.")

    tls_certificate: Path | None = setting(
        PATH, None, "PEM file with the certificate chain to serve with; taken up when it changes."
    )
    tls_key: Path | None = setting(PATH, None, "PEM file with the key of tls_certificate.")
    tls_client_ca: Path | None = setting(PATH, None, "PEM file with the CA that clients must be signed by.")
    private_hosts: tuple[str, ...] = setting(
        STRINGS, (), "HOST[:PORT] on private addresses that upstreams may lead to; port 443 unless said."
    )

    spec_store: Path | None = setting(
        PATH, None, "SQLite file of the specs that the administration API takes; default: it takes none."
    )
    admin_token: Secret = setting(
        SECRET, Secret(""), "Bearer token for the administration API; needed where access is not anonymous."
    )

    spec_service: SpecServiceSettings = dataclasses.field(default_factory=SpecServiceSettings)
    access: AccessSettings = dataclasses.field(default_factory=AccessSettings)
    local: LocalSettings = dataclasses.field(default_factory=LocalSettings)
    warm: WarmSettings = dataclasses.field(default_factory=WarmSettings)

    def problems(self) -> list[str]:
        """What no single setting shows."""
        found: list[str] = self.warm.problems()
        if self.default_upstream and self.default_upstream not in self.upstreams:
            found.append(f"facade.default_upstream: {self.default_upstream!r} is not among the upstreams")
        if self.workers < 1:
            found.append("facade.workers: accepts a whole number from 1")
        if not is_digest_index(self.digest_index):
            found.append(f"facade.digest_index: {INDEX_ACCEPTS}")
        if self.ipfs_api and not self.ipfs_api.startswith(("http://", "https://")):
            found.append(f"facade.ipfs_api: {self.ipfs_api!r}; accepts http(s)://HOST[:PORT]")
        found += [
            f"facade.ipfs_gateways: {gateway!r}; accepts http(s)://HOST[:PORT]"
            for gateway in self.ipfs_gateways
            if not gateway.startswith(("http://", "https://"))
        ]
        if self.peers and not is_peer_address(self.peer_url):
            found.append("facade.peer_url: accepts http(s)://HOST:PORT, and is needed where peers are named")
        found += [
            f"facade.peers: {peer!r}; accepts http(s)://HOST:PORT or dns+http(s)://NAME:PORT"
            for peer in self.peers
            if not is_peer_address(peer)
        ]
        for name, target in self.upstreams.items():
            if not target.startswith(("http://", "https://", "oci:")):
                found.append(f"facade.upstreams: {name}={target!r}; accepts http(s)://HOST[:PORT] or oci:DIR")
        return found + self._access_problems()

    def _access_problems(self) -> list[str]:
        found: list[str] = []
        if (self.tls_certificate is None) != (self.tls_key is None):
            found.append("facade.tls_certificate and facade.tls_key: both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            found.append("facade.tls_client_ca: needs tls_certificate and tls_key")
        if self.access.mode == "tokens" and self.access.tokens_file is None:
            found.append("facade.access.tokens_file: needed where access.mode is tokens")
        service = self.spec_service
        if service.url and not service.url.startswith(("http://", "https://", "grpc://", "grpcs://")):
            found.append(f"facade.spec_service.url: {service.url!r}; accepts http(s)://... or grpc(s)://...")
        if (service.certificate is None) != (service.key is None):
            found.append("facade.spec_service.certificate and .key: both or none")
        if self.access.mode != "anonymous" and self.admin_listen is None and not self.admin_token:
            found.append("facade.admin_token: needed where access is not anonymous, or set admin_listen")
        if self.access.mode != "anonymous" and self.peers and not self.peer_token:
            found.append("facade.peer_token: needed where peers are named and access is not anonymous")
        if self.snapshot_store and not self.snapshot_store.startswith(("http://", "https://", "file:///")):
            found.append(
                f"facade.snapshot_store: {self.snapshot_store!r}; accepts http(s)://... or file:///DIR"
            )
        found += [
            f"facade.private_hosts: {item!r}; accepts HOST or HOST:PORT"
            for item in self.private_hosts
            if parse_place(item) is None
        ]
        return found
