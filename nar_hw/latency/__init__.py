"""Latency tables: designs, measurement, the table itself and its validation."""
