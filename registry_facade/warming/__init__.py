"""Pre-pulling: images brought into this node's cache, and IPFS, before anybody starts them.

`warmer` does it, behind every real pull; `handlers` is its API, `schedule` its list in the settings.
"""
