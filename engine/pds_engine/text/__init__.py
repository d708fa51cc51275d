"""Text to token ids and back, as pure functions of a model folder's files."""
