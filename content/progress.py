"""How far a job is; read at any time, from any thread."""

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Counts only grow. ``total_bytes`` is None while it is not known."""

    phase: str = "waiting"
    bytes: int = 0
    entries: int = 0
    total_bytes: int | None = None
    total_entries: int | None = None
