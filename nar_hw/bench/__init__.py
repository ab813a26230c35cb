"""Benchmarks of bundles, side by side."""
