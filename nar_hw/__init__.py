"""Hardware-aware refinement of trained CNNs."""
