"""The layer-aware builder: chunks built independently, images combined by writing manifests."""
