"""Which CID a digest was stored under: hints that any node may write and none relies on.

`base` has the protocol; `sqlite` serves one node, `redis` many.
"""
