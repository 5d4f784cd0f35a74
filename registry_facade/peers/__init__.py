"""Facades that know each other serve each other: for small clusters, without IPFS.

For each digest one facade is the *keeper*, the same in every facade's eyes (`ring`). Who lacks a blob asks
its keeper, who downloads it once for all of them; only the keeper asks the upstream. `membership` says who
there is, `source` asks, `handlers` answers. Peers are believed as little as any other neighbour.
"""
