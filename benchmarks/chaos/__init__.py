"""Experiments that try to break what the service promises; see `python -m benchmarks.chaos --help`."""
