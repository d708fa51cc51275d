"""What benchmarks/warmup.py is made of: shapes of models, a pod's warm-up, virtual time."""
