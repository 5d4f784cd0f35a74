"""Doubles, suites and trees for tests of the content service."""
