"""SOCI: gzip layers of anybody, as they are, made readable file by file for the SOCI snapshotter."""
