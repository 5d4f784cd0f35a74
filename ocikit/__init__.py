"""The OCI vocabulary, the pure functions over it, and a registry client.

It knows nothing of the services above it. Start with `ocikit.digest`, `ocikit.descriptor` and
`ocikit.manifest`; bytes are reached through the protocols in `ocikit.blobs`, images by name through
`ocikit.repository`.
"""
