"""For tests, ours and other people's: a real registry in memory, faults, images, conformance suites.

Never imported by code that is not a test.
"""
