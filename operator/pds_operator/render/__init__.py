"""Rendering: from a spec and the settings to Kubernetes objects, as plain data. Pure."""
