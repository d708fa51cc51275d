"""PDServing."""
