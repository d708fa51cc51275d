"""What stands in the cluster: frozen facts, read from objects and answers. Pure."""
