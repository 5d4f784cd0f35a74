"""For tests only: time that stands still until it is told to go on."""
