"""Blobs from IPFS, through a Kubo node, without trusting it.

`kubo` speaks its RPC, `source` reads blobs by their digest, `announce` adds verified blobs and then says
under which CID. docs/ipfs.md tells what is measured and promised.
"""
