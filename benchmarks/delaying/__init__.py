"""What benchmarks/delayer.py is made of: dp ranks in virtual time, costs, policies, traces."""
