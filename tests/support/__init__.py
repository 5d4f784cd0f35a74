"""Real peers for tests: found, started on loopback, watched, and ended by their own process id."""
