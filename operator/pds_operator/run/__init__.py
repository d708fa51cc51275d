"""The operator at work: it follows the cluster, asks pods, carries plans out and tells status."""
