"""The operator at work: it follows the cluster, asks pods, executes plans and writes the status."""
