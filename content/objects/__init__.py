"""Object stores: one protocol, a directory and S3 behind it, and wrappers around any of them."""
