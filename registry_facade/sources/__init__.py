"""Where the bytes of a blob come from, nearest first: local disk, IPFS, the upstream registry."""
