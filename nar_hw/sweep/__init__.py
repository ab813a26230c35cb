"""Many searches or refinements from one plan: the product of networks, data, tables, targets, strategies and seeds."""
