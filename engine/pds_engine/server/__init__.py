"""The API server of a group: HTTP in, messages to the scheduler, text out. It imports no torch."""
