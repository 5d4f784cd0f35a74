"""Who may pull what: callers, what they were granted, and how it is proven.

The bytes of the cache are shared; the right to read them is not. See docs/threat-model.md.
"""
