"""nar_hw.latency."""
