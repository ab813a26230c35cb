"""The children of the NAR paper, by name."""
