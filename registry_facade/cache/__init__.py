"""Blobs on this node: complete ones, growing ones, and what is remembered about both.

`intervals` is the map of bytes present, `growing` the file they lie in, `download` fills it from sources,
`catalog` remembers (SQLite), `claims` keeps worker processes from downloading the same blob twice.
"""
