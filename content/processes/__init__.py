"""Each job in a process of its own: what it reads and writes can be limited, and it dies alone."""
