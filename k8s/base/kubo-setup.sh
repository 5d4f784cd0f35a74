#!/bin/sh
# Runs after `ipfs init`, before the daemon: a private node that talks to nobody it was not told of.
set -eu
ipfs config Addresses.API /ip4/0.0.0.0/tcp/5001
ipfs config --json Addresses.Gateway '[]'
ipfs config --json Addresses.Swarm '["/ip4/0.0.0.0/tcp/4001"]'
ipfs config --json AutoConf.Enabled false
ipfs config --json AutoTLS.Enabled false
ipfs config --json Bootstrap '[]'
ipfs config --json DNS.Resolvers '{}'
ipfs config --json Ipns.DelegatedPublishers '[]'
ipfs config --json Routing '{"Type": "none", "DelegatedRouters": []}'
ipfs config --json Discovery.MDNS.Enabled false
ipfs config Datastore.StorageMax 80GB
# Our blocks are of 1 MiB, and by default no more than 1 MiB is on its way to a node at a time.
ipfs config --json Internal.Bitswap '{"MaxOutstandingBytesPerPeer": 8388608}'
