"""For tests of what uses a digest index."""
