"""How a warm-up works: its processes, its memory, and what it says meanwhile."""
