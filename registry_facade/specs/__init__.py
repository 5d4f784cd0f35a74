"""Where image specs come from: a directory, this facade's own store, or a service."""
