"""The plugin `kubectl pds`."""
