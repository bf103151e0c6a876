"""Training stages, the training loop, and checkpoints."""
