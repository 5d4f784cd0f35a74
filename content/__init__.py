"""Workspaces to safety and back: plain tar objects with an index, and snapshots that commit last."""
