"""Engines side by side: the same weights, the same prompts, one after another on one machine."""
