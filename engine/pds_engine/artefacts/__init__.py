"""What a pod is to have compiled: the plan of its artefacts."""
