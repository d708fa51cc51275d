"""What the schedulers of a group agree on at dp above 1, pass by pass (data-parallel.md)."""
