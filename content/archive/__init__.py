"""Tar archives: written fast, read with suspicion. Nothing here knows of object stores."""
