"""Administration of a running facade: what it holds, what it must keep or forget, and image specs."""
