"""What every lapstrake process needs and no domain: settings, logs, metrics, lifecycle, throttles, files.

Nothing here knows of images, workspaces or snapshots.
"""
