"""Doubles of servicekit's protocols for tests."""
