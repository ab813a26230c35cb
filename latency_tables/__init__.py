"""The latency tables measured so far (README.md holds their format)."""
