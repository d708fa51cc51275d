"""A local, real Kubernetes on one Linux machine: no Docker, no registry (see docs/cluster.md)."""
