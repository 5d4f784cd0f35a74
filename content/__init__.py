"""The content service: workspace directories to an object store and back, losing nothing."""
