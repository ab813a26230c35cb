"""Training a network on a task: the loop, its checkpoints and resuming, fine-tuning in two phases, ensembles of snapshots."""
