"""Metrics, runs and comparisons."""
