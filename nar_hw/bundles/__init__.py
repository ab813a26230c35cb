"""Bundles: a trained network as one folder of checked files that runs without this package."""
