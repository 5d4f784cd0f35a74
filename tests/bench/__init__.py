"""Benchmarks: ratios against real peers, measured in the same run. ``python -m tests.bench``."""
